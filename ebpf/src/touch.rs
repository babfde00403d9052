//! First touches: one bit for each page that a container has touched, one record for each word that gained bits.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use forelayer_events::{
    BLOCK_WORDS, BlockKey, Header, KIND_TOUCH, PageBits, TouchRecord, WALK_PAGES,
};

use crate::maps::{
    DEVICES, EVENTS, GENERATION, HOST_MNT_NS, OWN_MNT_NS, TOUCHED, WATCHED_MOUNT_NS,
};
use crate::who::{Counter, header, when_full};

/// Pages in a word of the bitmap.
const WORD: u64 = 64;

/// Words of a `read`: [`WALK_PAGES`].
pub const WORDS_READ: u64 = WALK_PAGES / WORD + 1;
/// Words of a fault-around window (64 KiB unless somebody changed it; at most the 512 pages of a page table) or a folio.
pub const WORDS_WINDOW: u64 = 9;
/// Words of one page.
pub const WORDS_PAGE: u64 = 1;

/// No page touched. In the object's constants, because on the stack it would be set to zero byte by byte.
#[unsafe(no_mangle)]
static EMPTY: PageBits = PageBits {
    words: [0; BLOCK_WORDS],
};

/// Whether files of this device count.
#[inline(always)]
pub fn is_ours(dev: u32) -> bool {
    DEVICES.get_ptr(dev).is_some()
}

/// Pages `first..=last` of a file of our device were touched. Only the first `WORDS` words of the range are looked at.
#[inline(always)]
pub fn touched<const WORDS: u64, C: EbpfContext>(
    ctx: &C,
    access: u16,
    dev: u32,
    ino: u64,
    first: u64,
    last: u64,
) {
    if last < first {
        return;
    }
    let Some(lost) = Counter::new() else {
        return;
    };
    let header = header(KIND_TOUCH, access);
    watch_opens(&header);
    let mut key = BlockKey {
        cgroup: header.cgroup,
        ino,
        block: 0,
        mnt_ns: header.mnt_ns,
        dev,
        generation: GENERATION.get(0).copied().unwrap_or(0),
        reserved: 0,
    };
    // One flat loop, left by comparing its counter with one unknown number: the verifier then finds the same state in
    // every round, whichever way it came. With the ends of the range compared in each round it tries every pair of ends.
    let base = first / WORD;
    let words = (last / WORD).wrapping_sub(base).wrapping_add(1);
    for index in 0..WORDS {
        if index >= words {
            break;
        }
        let word = base.wrapping_add(index);
        let mut wanted = u64::MAX;
        if index == 0 {
            wanted &= u64::MAX << (first % WORD);
        }
        if index.wrapping_add(1) == words {
            wanted &= u64::MAX >> (WORD - 1 - last % WORD);
        }
        key.block = word / BLOCK_WORDS as u64;
        match bits_of(&key) {
            Some(bits) => mark(&lost, &header, &key, bits, word, wanted),
            None => lost.bits(),
        }
    }
    lost.say(ctx);
}

/// A range that is announced once and too long to walk: reported as a whole, without asking what was seen before.
#[inline(always)]
pub fn touched_run<C: EbpfContext>(
    ctx: &C,
    access: u16,
    dev: u32,
    ino: u64,
    first: u64,
    last: u64,
) {
    let pages = last
        .wrapping_sub(first)
        .wrapping_add(1)
        .min(u64::from(u32::MAX)) as u32;
    let header = header(KIND_TOUCH, access);
    watch_opens(&header);
    if let Some(lost) = Counter::new() {
        submit(
            &lost,
            TouchRecord {
                header,
                ino,
                page: first,
                bits: 0,
                pages,
                dev,
            },
        );
        lost.say(ctx);
    }
}

/// A process outside the host's and our own mount namespace that touches our devices is a container's: from now on its opens count.
/// User space could not say so in time for the first of them.
#[inline(always)]
fn watch_opens(header: &Header) {
    if header.mnt_ns != 0
        && header.mnt_ns != OWN_MNT_NS.load()
        && header.mnt_ns != HOST_MNT_NS.load()
        && WATCHED_MOUNT_NS.get_ptr(header.mnt_ns).is_none()
    {
        // A failure costs this container's opens, no touch: nothing to count.
        let _ = WATCHED_MOUNT_NS.insert(header.mnt_ns, 1, 0);
    }
}

/// The block's bits; made on its first touch.
#[inline(always)]
fn bits_of(key: &BlockKey) -> Option<*mut PageBits> {
    if let Some(bits) = TOUCHED.get_ptr_mut(key) {
        return Some(bits);
    }
    // Another processor may have been first (BPF_NOEXIST then fails): what counts is what is there afterwards.
    let _ = TOUCHED.insert(key, &EMPTY, u64::from(BPF_NOEXIST));
    TOUCHED.get_ptr_mut(key)
}

/// Marks the wanted pages of a word, and reports those that were not marked.
#[inline(always)]
fn mark(
    lost: &Counter,
    header: &Header,
    key: &BlockKey,
    bits: *mut PageBits,
    word: u64,
    wanted: u64,
) {
    // SAFETY: the remainder is below `BLOCK_WORDS`, and the map's value lives on while the program runs. Two processors that race here
    // can lose each other's bits: those pages are reported twice, never missed.
    let fresh = unsafe {
        let slot = bits.cast::<u64>().add(word as usize % BLOCK_WORDS);
        let before = slot.read_volatile();
        let fresh = wanted & !before;
        if fresh == 0 {
            return;
        }
        slot.write_volatile(before | fresh);
        fresh
    };
    let page = word.wrapping_mul(WORD);
    submit(
        lost,
        TouchRecord {
            header: *header,
            ino: key.ino,
            page,
            bits: fresh,
            pages: 0,
            dev: key.dev,
        },
    );
}

#[inline(always)]
fn submit(lost: &Counter, record: TouchRecord) {
    match EVENTS.reserve::<TouchRecord>(0) {
        Some(mut entry) => {
            entry.write(record);
            entry.submit(when_full());
        }
        None => lost.ring(),
    }
}
