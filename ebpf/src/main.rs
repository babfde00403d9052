//! The programs that see which pages of our devices a container touches, what it opens and what it starts.
//!
//! They only look: no program changes anything outside its own maps. What they see goes through one ring buffer, as
//! the records of `forelayer-events`.
//!
//! Invariant kept by every file here: nothing that can panic, and no symbol whose name depends on where the compiler's
//! library lies (every `static` is a map or `no_mangle`, every helper is inlined), so that the same sources always
//! become the same bytes (docs/design.md, "The witness").
#![no_std]
#![no_main]

mod kprobes;
mod maps;
mod opens;
mod processes;
mod touch;
mod tracepoints;
mod who;

/// Helpers such as `bpf_probe_read_kernel` want a licence string that the kernel counts as compatible with its own; the
/// sources are under MIT or Apache-2.0, at the reader's choice.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never linked: nothing here panics, and the build refuses an object in which this survives.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
