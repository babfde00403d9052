//! An executable whose touches are known page by page.
//!
//! The kernel reads page 0 (the headers), maps pages 16 to 31 (code) and 32 to 47 (constants), and the code runs
//! through two pages of its own and reads every page of the constants. Both segments are one fault-around window of 16
//! pages, aligned as the kernel aligns them, so that it does not matter which page of a window is mapped by which fault.

use std::collections::BTreeMap;

use forelayer_profiler::protocol::Access;

/// Bytes of the file: 64 pages, of which the last 16 belong to no segment.
pub const SIZE: usize = 64 * 4096;

const CODE: usize = 0x1_0000;
const CONSTANTS: usize = 0x2_0000;
const SEGMENT: usize = 0x1_0000;
const BASE: u32 = 0x40_0000;

/// The file's bytes: a static x86-64 program that ends with status 0.
#[must_use]
pub fn bytes() -> Vec<u8> {
    let mut file = vec![0u8; SIZE];
    let mut header = Vec::new();
    header.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend_from_slice(&2u16.to_le_bytes()); // executable
    header.extend_from_slice(&62u16.to_le_bytes()); // x86-64
    header.extend_from_slice(&1u32.to_le_bytes());
    header.extend_from_slice(&address(CODE).to_le_bytes()); // entry
    header.extend_from_slice(&64u64.to_le_bytes()); // program headers follow
    header.extend_from_slice(&0u64.to_le_bytes()); // no sections
    header.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        header.extend_from_slice(&half.to_le_bytes());
    }
    for (flags, offset) in [(5u32, CODE), (4, CONSTANTS)] {
        header.extend_from_slice(&1u32.to_le_bytes()); // to be loaded
        header.extend_from_slice(&flags.to_le_bytes());
        let (place, length) = (address(offset), SEGMENT as u64);
        for word in [offset as u64, place, place, length, length, SEGMENT as u64] {
            header.extend_from_slice(&word.to_le_bytes());
        }
    }
    file[..header.len()].copy_from_slice(&header);

    let mut code = Vec::new();
    for page in 0..SEGMENT / 4096 {
        code.extend_from_slice(&[0x8a, 0x04, 0x25]); // mov al, [address]
        let constant = BASE + u32::try_from(CONSTANTS + page * 4096).expect("below 4 GiB");
        code.extend_from_slice(&constant.to_le_bytes());
    }
    let jump = i32::try_from(4096 - (code.len() + 5)).expect("within a page");
    code.push(0xe9); // jmp to the next page of the code
    code.extend_from_slice(&jump.to_le_bytes());
    file[CODE..CODE + code.len()].copy_from_slice(&code);
    // mov eax, 60 (exit); xor edi, edi; syscall
    let exit = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    file[CODE + 4096..CODE + 4096 + exit.len()].copy_from_slice(&exit);
    file
}

/// The pages that running it touches, and how.
#[must_use]
pub fn touches() -> BTreeMap<u64, Access> {
    std::iter::once((0, Access::Read))
        .chain((16..48).map(|page| (page, Access::Map)))
        .collect()
}

fn address(offset: usize) -> u64 {
    u64::from(BASE) + offset as u64
}
