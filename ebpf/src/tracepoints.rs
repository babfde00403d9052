//! The page cache's own events. The offsets of their fields are fixed here, because the verifier takes no other, and
//! compared by the loader with the kernel's format files before it attaches (`profiler/src/witness/formats.rs`).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use forelayer_events::{ACCESS_ADD, ACCESS_MAP, ACCESS_READ};

use crate::touch::{WORDS_PAGE, WORDS_READ, WORDS_WINDOW, is_ours, touched};

/// A field of the event's record.
///
/// # Safety
/// `OFFSET..OFFSET + size_of::<T>()` must lie in the record (the kernel refuses to attach a program that reads past
/// it), and its bytes must be a valid `T`.
#[inline(always)]
pub unsafe fn field<const OFFSET: usize, T: Copy>(ctx: &TracePointContext) -> T {
    // SAFETY: the caller's; the kernel aligns the fields of a record.
    unsafe { *ctx.as_ptr().cast::<u8>().add(OFFSET).cast::<T>() }
}

/// `filemap:mm_filemap_get_pages`: a `read`, cached or not. The last page is part of the range.
#[tracepoint]
pub fn get_pages(ctx: TracePointContext) -> u32 {
    range::<WORDS_READ>(&ctx, ACCESS_READ)
}

/// `filemap:mm_filemap_map_pages`: cached pages mapped around a fault.
#[tracepoint]
pub fn map_pages(ctx: TracePointContext) -> u32 {
    range::<WORDS_WINDOW>(&ctx, ACCESS_MAP)
}

#[inline(always)]
fn range<const WORDS: u64>(ctx: &TracePointContext, access: u16) -> u32 {
    // SAFETY: integers at offsets that the loader has checked.
    unsafe {
        let dev = field::<16, u32>(ctx);
        if is_ours(dev) {
            touched::<WORDS, _>(
                ctx,
                access,
                dev,
                field::<8, u64>(ctx),
                field::<24, u64>(ctx),
                field::<32, u64>(ctx),
            );
        }
    }
    0
}

/// `filemap:mm_filemap_fault`: a page that fault-around did not find.
#[tracepoint]
pub fn fault(ctx: TracePointContext) -> u32 {
    // SAFETY: integers at offsets that the loader has checked.
    unsafe {
        let dev = field::<16, u32>(&ctx);
        if is_ours(dev) {
            let page = field::<24, u64>(&ctx);
            touched::<WORDS_PAGE, _>(&ctx, ACCESS_MAP, dev, field::<8, u64>(&ctx), page, page);
        }
    }
    0
}

/// `filemap:mm_filemap_add_to_page_cache`: a folio enters the page cache.
#[tracepoint]
pub fn add_folio(ctx: TracePointContext) -> u32 {
    // SAFETY: integers at offsets that the loader has checked.
    unsafe {
        let dev = field::<32, u32>(&ctx);
        if is_ours(dev) {
            let order = u32::from(field::<36, u8>(&ctx)) & 31;
            added(&ctx, dev, 1 << order);
        }
    }
    0
}

/// The same on kernels whose record ends before `order`: there every folio is one page.
#[tracepoint]
pub fn add_page(ctx: TracePointContext) -> u32 {
    // SAFETY: an integer at an offset that the loader has checked.
    unsafe {
        let dev = field::<32, u32>(&ctx);
        if is_ours(dev) {
            added(&ctx, dev, 1);
        }
    }
    0
}

#[inline(always)]
fn added(ctx: &TracePointContext, dev: u32, pages: u64) {
    // SAFETY: integers at offsets that the loader has checked.
    unsafe {
        let first = field::<24, u64>(ctx);
        let last = first.saturating_add(pages - 1);
        touched::<WORDS_WINDOW, _>(ctx, ACCESS_ADD, dev, field::<16, u64>(ctx), first, last);
    }
}
