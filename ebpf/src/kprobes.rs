//! The same touches on kernels without the page cache's events: the functions behind them, read through offsets that
//! the loader takes from the kernel's BTF.

use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use forelayer_events::{ACCESS_MAP, ACCESS_READ, PAGE_SIZE, WALK_PAGES};

use crate::maps::{
    FILE_INODE, GET_PAGES_HAS_ITER, INODE_INO, INODE_SB, ITER_COUNT, KIOCB_FILP, KIOCB_POS, SB_DEV,
    VMA_FILE, VMF_PGOFF, VMF_VMA,
};
use crate::touch::{WORDS_PAGE, WORDS_READ, WORDS_WINDOW, is_ours, touched, touched_run};
use crate::who::peek;

/// `filemap_get_pages(kiocb, iov_iter or length, ...)`: every batch of a `read`.
#[kprobe]
pub fn probe_get_pages(ctx: ProbeContext) -> u32 {
    let has_iter = GET_PAGES_HAS_ITER.load() != 0;
    match read_range(&ctx, has_iter) {
        Some(range) => {
            touched::<WORDS_READ, _>(
                &ctx,
                ACCESS_READ,
                range.dev,
                range.ino,
                range.first,
                range.last,
            );
            0
        }
        None => 0,
    }
}

/// `filemap_read(kiocb, iov_iter, ...)`, where the function above cannot be probed: a whole `read` at once.
#[kprobe]
pub fn probe_read(ctx: ProbeContext) -> u32 {
    if let Some(range) = read_range(&ctx, true) {
        if range.last.wrapping_sub(range.first) < WALK_PAGES {
            touched::<WORDS_READ, _>(
                &ctx,
                ACCESS_READ,
                range.dev,
                range.ino,
                range.first,
                range.last,
            );
        } else {
            touched_run(
                &ctx,
                ACCESS_READ,
                range.dev,
                range.ino,
                range.first,
                range.last,
            );
        }
    }
    0
}

/// `filemap_map_pages(vm_fault, first, last)`: the pages around a fault, of which those in the cache get mapped.
#[kprobe]
pub fn probe_map_pages(ctx: ProbeContext) -> u32 {
    let (Some(vmf), Some(first), Some(last)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2))
    else {
        return 0;
    };
    if let Some((dev, ino)) = mapped_file(vmf) {
        touched::<WORDS_WINDOW, _>(&ctx, ACCESS_MAP, dev, ino, first, last);
    }
    0
}

/// `filemap_fault(vm_fault)`: a page that fault-around did not find.
#[kprobe]
pub fn probe_fault(ctx: ProbeContext) -> u32 {
    let Some(vmf) = ctx.arg::<u64>(0) else {
        return 0;
    };
    // SAFETY: integers.
    if let (Some((dev, ino)), Ok(page)) = (mapped_file(vmf), unsafe {
        peek::<u64>(vmf, VMF_PGOFF.load())
    }) {
        touched::<WORDS_PAGE, _>(&ctx, ACCESS_MAP, dev, ino, page, page);
    }
    0
}

/// Pages `first..=last` of a file of ours.
struct Range {
    dev: u32,
    ino: u64,
    first: u64,
    last: u64,
}

/// What a `kiocb` in the first argument is about to read; `None` where it is not ours or reads nothing.
#[inline(always)]
fn read_range(ctx: &ProbeContext, has_iter: bool) -> Option<Range> {
    let kiocb = ctx.arg::<u64>(0)?;
    let second = ctx.arg::<u64>(1)?;
    // SAFETY: integers, at addresses that the helper checks.
    unsafe {
        let file = peek::<u64>(kiocb, KIOCB_FILP.load()).ok()?;
        let (dev, ino) = our_file(file)?;
        let position = peek::<u64>(kiocb, KIOCB_POS.load()).ok()?;
        let length = if has_iter {
            peek::<u64>(second, ITER_COUNT.load()).ok()?
        } else {
            second
        };
        if length == 0 {
            return None;
        }
        let last = position.saturating_add(length - 1) / PAGE_SIZE;
        Some(Range {
            dev,
            ino,
            first: position / PAGE_SIZE,
            last,
        })
    }
}

/// The file behind a `vm_fault`, if it is ours.
#[inline(always)]
fn mapped_file(vmf: u64) -> Option<(u32, u64)> {
    // SAFETY: integers, at addresses that the helper checks.
    unsafe {
        let vma = peek::<u64>(vmf, VMF_VMA.load()).ok()?;
        let file = peek::<u64>(vma, VMA_FILE.load()).ok()?;
        our_file(file)
    }
}

/// Device and inode number of a `file`, if the device is ours.
#[inline(always)]
fn our_file(file: u64) -> Option<(u32, u64)> {
    // SAFETY: integers, at addresses that the helper checks.
    unsafe {
        let inode = peek::<u64>(file, FILE_INODE.load()).ok()?;
        let superblock = peek::<u64>(inode, INODE_SB.load()).ok()?;
        let dev = peek::<u32>(superblock, SB_DEV.load()).ok()?;
        if !is_ours(dev) {
            return None;
        }
        Some((dev, peek::<u64>(inode, INODE_INO.load()).ok()?))
    }
}
