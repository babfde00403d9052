//! Tracefs, and what the kernel says about its events there.
//!
//! Invariant kept here: a program that reads a field at a fixed place of an event's record is attached only if the
//! kernel's own `format` file names that field at that place.

use std::path::{Path, PathBuf};

use super::error::WitnessError;

/// Where tracefs can be; the first is where it is mounted if it is nowhere.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A field of an event's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Name in the `format` file.
    pub(super) name: &'static str,
    /// Bytes from the record's start.
    pub(super) offset: u32,
    /// Bytes.
    pub(super) size: u32,
}

/// Shorthand for the tables of `ladder`.
pub(super) const fn field(name: &'static str, offset: u32, size: u32) -> Field {
    Field { name, offset, size }
}

/// The events directory of tracefs. Mounts it where no one has and we may.
pub(super) fn events_dir() -> Result<PathBuf, WitnessError> {
    let there = || {
        PLACES
            .iter()
            .map(|place| Path::new(place).join("events"))
            .find(|events| events.is_dir())
    };
    if let Some(events) = there() {
        return Ok(events);
    }
    let mounted = rustix::mount::mount(
        "tracefs",
        PLACES[0],
        "tracefs",
        rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC,
        None,
    );
    match (there(), mounted) {
        (Some(events), _) => Ok(events),
        (None, Err(error)) => Err(WitnessError::NoTracefs {
            reason: format!("mounting it failed: {error}"),
        }),
        (None, Ok(())) => Err(WitnessError::NoTracefs {
            reason: "it has no directory `events`".to_owned(),
        }),
    }
}

/// What an event's `format` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Format {
    event: String,
    fields: Vec<(String, u32, u32)>,
}

impl Format {
    /// Reads the format of `category/name`; the error is a sentence.
    pub(super) fn read(events: &Path, category: &str, name: &str) -> Result<Self, String> {
        let path = events.join(category).join(name).join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&format!("{category}:{name}"), &text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("this kernel has no event {category}:{name}"))
            }
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        }
    }

    fn parse(event: &str, text: &str) -> Self {
        let mut fields = Vec::new();
        for line in text.lines() {
            let Some(declaration) = line.trim().strip_prefix("field:") else {
                continue;
            };
            let mut parts = declaration.split(';').map(str::trim);
            let Some(name) = parts.next().and_then(name_of) else {
                continue;
            };
            let mut numbers = [None, None];
            for part in parts {
                if let Some(value) = part.strip_prefix("offset:") {
                    numbers[0] = value.trim().parse().ok();
                } else if let Some(value) = part.strip_prefix("size:") {
                    numbers[1] = value.trim().parse().ok();
                }
            }
            if let [Some(offset), Some(size)] = numbers {
                fields.push((name.to_owned(), offset, size));
            }
        }
        Self {
            event: event.to_owned(),
            fields,
        }
    }

    /// Offset and size of a field.
    pub(super) fn field(&self, name: &str) -> Option<(u32, u32)> {
        self.fields
            .iter()
            .find(|(known, ..)| known == name)
            .map(|(_, offset, size)| (*offset, *size))
    }

    /// Whether every field lies where the programs read it; the error is a sentence.
    pub(super) fn check(&self, wanted: &[Field]) -> Result<(), String> {
        for Field { name, offset, size } in wanted {
            match self.field(name) {
                None => return Err(format!("the event {} has no field `{name}`", self.event)),
                Some(found) if found != (*offset, *size) => {
                    return Err(format!(
                        "the event {} has `{name}` at offset {} in {} bytes, not at {offset} in {size}",
                        self.event, found.0, found.1
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The name in a C declaration such as `unsigned long i_ino` or `char comm[16]`.
fn name_of(declaration: &str) -> Option<&str> {
    let without_array = declaration
        .split_once('[')
        .map_or(declaration, |(before, after)| {
            // `__data_loc char[] filename`: the brackets belong to the type.
            match after.split_once(']') {
                Some((_, name)) if !name.trim().is_empty() => name,
                _ => before,
            }
        });
    without_array
        .split(|c: char| c.is_whitespace() || c == '*')
        .rfind(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const ADD: &str = "name: mm_filemap_add_to_page_cache\nID: 480\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:dev_t s_dev;\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:__data_loc char[] filename;\toffset:40;\tsize:4;\tsigned:0;\n\
        \tfield:char comm[16];\toffset:44;\tsize:16;\tsigned:0;\n\
        \tfield:const char * path;\toffset:64;\tsize:8;\tsigned:0;\n\n\
        print fmt: \"dev %d:%d\"\n";

    #[test]
    fn names_places_and_sizes_are_read() {
        let format = Format::parse("filemap:add", ADD);
        assert_eq!(format.field("s_dev"), Some((32, 4)));
        assert_eq!(format.field("filename"), Some((40, 4)));
        assert_eq!(format.field("comm"), Some((44, 16)));
        assert_eq!(format.field("path"), Some((64, 8)));
        assert_eq!(format.field("order"), None);
    }

    #[test]
    fn a_moved_field_is_refused_with_both_places() {
        let format = Format::parse("filemap:add", ADD);
        assert_eq!(
            format.check(&[field("pfn", 8, 8), field("s_dev", 32, 4)]),
            Ok(())
        );
        let moved = format.check(&[field("s_dev", 28, 4)]).unwrap_err();
        assert!(
            moved.contains("s_dev") && moved.contains("32") && moved.contains("28"),
            "{moved}"
        );
        let missing = format.check(&[field("order", 36, 1)]).unwrap_err();
        assert!(missing.contains("order"), "{missing}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = Format::parse("any", &text);
            let _ = Format::parse("any", &format!("field:{text};offset:1;size:2;"));
        }
    }
}
