//! What the allocator does with large buffers.

#![expect(unsafe_code, reason = "a setting of the allocator")]

/// Buffers of so many bytes and more are mapped by themselves, and unmapped when they are freed: FUSE's, which are 16 MiB
/// each, and no chunk's.
///
/// Unless told, glibc takes the largest such buffer that was ever freed (up to 32 MiB) for the bound from then on. FUSE's
/// next ones, of which the kernel fills some kilobytes, are then cut from a heap and cleared by hand. Measured
/// (`cargo xtask bench --goals idle`): 31 MB resident of a store that was never used, 13 with this.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 8 << 20;
/// A heap gives back what is free at its end when it is more than this. Told with the other, or it would be 128 KiB;
/// twice the other is glibc's own rule.
#[cfg(target_env = "gnu")]
const SPARE: libc::c_int = 16 << 20;

/// Has large buffers go back to the kernel when they are freed. Call it before threads are made.
pub fn give_large_buffers_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: both calls set a number inside the allocator, which may be done at any time.
        let told = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE) == 1
        };
        // It works without.
        debug_assert!(told, "the allocator knows both settings");
    }
}

/// Has the heaps give back whatever is free in them, not only at their ends. Takes milliseconds, and whoever allocates
/// meanwhile waits: for moments in which there is nothing to do.
pub fn give_back_what_is_free() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it locks the heaps by itself and may be called from any thread.
        unsafe { libc::malloc_trim(0) };
    }
}
