//! Offsets of kernel structures, from the kernel's own type information (BTF).
//!
//! Only what the programs need is read: where a named member lies in a named structure, and whether a function's
//! parameter is a pointer. Invariant kept here: every offset of the blob is checked before it is followed, so a
//! damaged blob gives an error or `None`, never a panic.

use std::collections::HashMap;
use std::path::Path;

/// Where the kernel shows its BTF.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// Anonymous members nest a few levels deep in the kernel; a damaged blob could nest for ever.
const MAX_DEPTH: u32 = 16;

/// Why type information could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// It cannot be read.
    #[error("cannot read {VMLINUX}: {0}")]
    Read(#[from] std::io::Error),
    /// It is not BTF of the version and byte order known here.
    #[error("{VMLINUX} is damaged or of an unknown version ({0})")]
    Malformed(&'static str),
}

/// A BTF blob and where its types begin.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// Start of the string section.
    strings: usize,
    /// Offset of every type's record; type ids start at 1, so id `n` is at index `n - 1`.
    types: Vec<u32>,
    /// Named structures and functions.
    names: HashMap<(u32, String), u32>,
}

impl Btf {
    /// The running kernel's.
    pub(super) fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(std::fs::read(Path::new(VMLINUX))?)
    }

    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let short = || BtfError::Malformed("it ends too early");
        if u16_at(&bytes, 0) != Some(MAGIC) {
            return Err(BtfError::Malformed("magic number"));
        }
        let field = |offset| {
            u32_at(&bytes, offset)
                .and_then(|value| usize::try_from(value).ok())
                .ok_or_else(short)
        };
        let (header, types_at, types_len, strings_at) =
            (field(4)?, field(8)?, field(12)?, field(16)?);
        let types_start = header.checked_add(types_at).ok_or_else(short)?;
        let types_end = types_start
            .checked_add(types_len)
            .filter(|end| *end <= bytes.len())
            .ok_or_else(short)?;
        let strings = header
            .checked_add(strings_at)
            .filter(|start| *start <= bytes.len())
            .ok_or_else(short)?;

        let mut btf = Self {
            bytes,
            strings,
            types: Vec::new(),
            names: HashMap::new(),
        };
        let mut at = types_start;
        while at < types_end {
            let info = u32_at(&btf.bytes, at + 4).ok_or_else(short)?;
            let count = (info & 0xffff) as usize;
            let extra = match kind_of(info) {
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                // Arrays.
                3 => 12,
                // Structures, unions, sections, 64-bit enumerations.
                4 | 5 | 15 | 19 => count * 12,
                // Enumerations, function prototypes.
                6 | 13 => count * 8,
                // Pointers, forwards, typedefs, qualifiers, functions, floats, type tags.
                2 | 7..=12 | 16 | 18 => 0,
                _ => return Err(BtfError::Malformed("a kind of type that is not known")),
            };
            let id = u32::try_from(btf.types.len() + 1)
                .map_err(|_| BtfError::Malformed("too many types"))?;
            btf.types
                .push(u32::try_from(at).map_err(|_| BtfError::Malformed("too large"))?);
            if matches!(kind_of(info), KIND_STRUCT | KIND_FUNC)
                && let Some(name) = u32_at(&btf.bytes, at).and_then(|offset| btf.string(offset))
                && !name.is_empty()
            {
                let key = (kind_of(info), name.to_owned());
                btf.names.entry(key).or_insert(id);
            }
            at += 12 + extra;
        }
        Ok(btf)
    }

    /// Where `path` (members, outermost first) lies in `structure`, in bytes; anonymous members are looked through.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut id = *self.names.get(&(KIND_STRUCT, structure.to_owned()))?;
        let mut offset = 0u32;
        for member in path {
            let (bits, member_type) = self.member(id, member, 0)?;
            offset = offset.checked_add(bits / 8)?;
            id = member_type;
        }
        Some(offset)
    }

    /// Whether the function is known, and if so whether its parameter `index` is a pointer.
    pub(super) fn parameter_is_pointer(&self, function: &str, index: usize) -> Option<bool> {
        let at = self.record(*self.names.get(&(KIND_FUNC, function.to_owned()))?)?;
        let prototype = self.record(u32_at(&self.bytes, at + 8)?)?;
        let info = u32_at(&self.bytes, prototype + 4)?;
        if kind_of(info) != KIND_FUNC_PROTO || index >= (info & 0xffff) as usize {
            return None;
        }
        let id = self.resolve(u32_at(&self.bytes, prototype + 12 + index * 8 + 4)?)?;
        let at = self.record(id)?;
        Some(kind_of(u32_at(&self.bytes, at + 4)?) == KIND_PTR)
    }

    /// Bit offset and type of a member, through anonymous structures and unions.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        let at = self.record(self.resolve(id)?)?;
        let info = u32_at(&self.bytes, at + 4)?;
        if !matches!(kind_of(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let member_name = self.string(u32_at(&self.bytes, member)?)?;
            let member_type = u32_at(&self.bytes, member + 4)?;
            let raw = u32_at(&self.bytes, member + 8)?;
            // With the kind flag, the upper byte is the width of a bit field.
            let bits = if info >> 31 == 1 {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            if member_name == name {
                return Some((bits, member_type));
            }
            if member_name.is_empty()
                && let Some((inner, inner_type)) = self.member(member_type, name, depth + 1)
            {
                return Some((bits.checked_add(inner)?, inner_type));
            }
        }
        None
    }

    /// Through typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let at = self.record(id)?;
            match kind_of(u32_at(&self.bytes, at + 4)?) {
                8..=11 | 18 => id = u32_at(&self.bytes, at + 8)?,
                _ => return Some(id),
            }
        }
        None
    }

    fn record(&self, id: u32) -> Option<usize> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        self.types.get(index).map(|at| *at as usize)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let start = self.strings.checked_add(usize::try_from(offset).ok()?)?;
        let rest = self.bytes.get(start..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    /// `struct file { int a; union { struct { int b; char *c; }; }; }`, `int get(struct file *, int)`.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |text: &str| {
            let at = u32::try_from(strings.len()).unwrap();
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let (int, file, a, b, c, get) = (
            name("int"),
            name("file"),
            name("a"),
            name("b"),
            name("c"),
            name("get"),
        );
        let info = |kind: u32, count: u32| kind << 24 | count;
        let words: Vec<u32> = vec![
            // 1: int
            int,
            info(1, 0),
            4,
            32, //
            // 2: char pointer (to int, the pointee does not matter)
            0,
            info(KIND_PTR, 0),
            1, //
            // 3: anonymous struct { int b; char *c; }
            0,
            info(KIND_STRUCT, 2),
            16,
            b,
            1,
            0,
            c,
            2,
            64, //
            // 4: anonymous union of it
            0,
            info(KIND_UNION, 1),
            16,
            0,
            3,
            0, //
            // 5: struct file
            file,
            info(KIND_STRUCT, 2),
            24,
            a,
            1,
            0,
            0,
            4,
            64, //
            // 6: pointer to it
            0,
            info(KIND_PTR, 0),
            5, //
            // 7: prototype, 8: function
            0,
            info(KIND_FUNC_PROTO, 2),
            1,
            0,
            6,
            0,
            1, //
            get,
            info(KIND_FUNC, 0),
            7,
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut blob = Vec::new();
        blob.extend_from_slice(&MAGIC.to_ne_bytes());
        blob.extend_from_slice(&[1, 0]);
        let types_len = u32::try_from(types.len()).unwrap();
        for word in [
            24,
            0,
            types_len,
            types_len,
            u32::try_from(strings.len()).unwrap(),
        ] {
            blob.extend_from_slice(&u32::to_ne_bytes(word));
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    #[test]
    fn members_are_found_also_inside_anonymous_ones() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("file", &["a"]), Some(0));
        assert_eq!(btf.offset("file", &["b"]), Some(8));
        assert_eq!(btf.offset("file", &["c"]), Some(16));
        assert_eq!(btf.offset("file", &["d"]), None);
        assert_eq!(btf.offset("inode", &["a"]), None);
    }

    #[test]
    fn parameters_tell_pointers_from_numbers() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.parameter_is_pointer("get", 0), Some(true));
        assert_eq!(btf.parameter_is_pointer("get", 1), Some(false));
        assert_eq!(btf.parameter_is_pointer("get", 2), None);
        assert_eq!(btf.parameter_is_pointer("put", 0), None);
    }

    proptest! {
        /// Whatever the bytes are, there is an answer and no panic.
        #[test]
        fn damage_never_panics(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut blob = sample();
            let len = blob.len();
            blob[at % len] = value;
            blob.truncate(len - cut % len);
            if let Ok(btf) = Btf::parse(blob) {
                let _ = btf.offset("file", &["c", "b"]);
                let _ = btf.parameter_is_pointer("get", 0);
            }
        }
    }
}
