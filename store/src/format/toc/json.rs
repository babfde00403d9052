//! The TOC's JSON as a stream of entries: a window of bytes moves over it, and one entry at a time is parsed in it.
//!
//! Invariant: memory is bounded by the window, which grows only to hold one entry and never above its limit.

use std::io::Read;

use serde::de::{Deserialize, IgnoredAny};
use serde_json::{Deserializer, error::Category};

use super::{
    TocError,
    entry::{NameOnly, RawEntry},
    refusal::Refusal,
};

/// Bytes of the window at first: some hundred entries, so that only few are parsed twice at its end.
const WINDOW: usize = 256 << 10;

/// Reads `{"version": 1, "entries": [...]}` (other keys are ignored) and hands every entry on, in order.
///
/// # Errors
/// What `on_entry` answers, and [`TocError`]s of the JSON itself. `max_entry` bounds the bytes of one entry.
pub(super) fn read_entries(
    reader: impl Read,
    max_entry: usize,
    mut on_entry: impl FnMut(RawEntry<'_>) -> Result<(), TocError>,
) -> Result<(), TocError> {
    let mut window = Window {
        reader,
        bytes: vec![0; WINDOW.min(max_entry.max(64))],
        start: 0,
        end: 0,
        ended: false,
        read: 0,
        max: max_entry,
    };
    let mut version = None;
    let mut seen = false;
    let mut number = 0_u64;
    window.expect(b'{')?;
    let mut more = window.next_byte()? != b'}';
    if !more {
        window.start += 1;
    }
    while more {
        let mut key = String::new();
        window.value(|text: String| {
            key = text;
            Ok(())
        })?;
        window.expect(b':')?;
        match key.as_str() {
            "version" => window.value(|found: u64| {
                version = Some(found);
                Ok(())
            })?,
            "entries" if seen => return Err(window.wrong("\"entries\" occurs twice")),
            "entries" => {
                seen = true;
                if window.next_byte()? == b'n' {
                    window.value(|(): ()| Ok(()))?;
                } else {
                    window.expect(b'[')?;
                    let mut another = window.next_byte()? != b']';
                    if !another {
                        window.start += 1;
                    }
                    while another {
                        number += 1;
                        window.entry(number, &mut on_entry)?;
                        another = window.comma_or(b']')?;
                    }
                }
            }
            _ => window.value(|_: IgnoredAny| Ok(()))?,
        }
        more = window.comma_or(b'}')?;
    }
    window.nothing_more()?;
    match version {
        Some(1) => {}
        found => return Err(TocError::Version(found)),
    }
    if !seen {
        return Err(window.wrong("it has no \"entries\""));
    }
    Ok(())
}

struct Window<R> {
    reader: R,
    bytes: Vec<u8>,
    /// What was read and not yet consumed.
    start: usize,
    end: usize,
    /// The reader has no more.
    ended: bool,
    /// Bytes of the JSON before `bytes[0]`.
    read: u64,
    max: usize,
}

enum Step {
    Done(Result<(), TocError>, usize),
    More,
    Bad(serde_json::Error, Option<String>),
}

impl<R: Read> Window<R> {
    /// Brings more bytes behind those that are there.
    fn fill(&mut self) -> Result<(), TocError> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.read += self.start as u64;
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            if self.bytes.len() >= self.max {
                return Err(self.wrong(&format!(
                    "one value has more than the {} bytes that an entry may have",
                    self.max
                )));
            }
            let len = (self.bytes.len() * 2).min(self.max);
            self.bytes.resize(len, 0);
        }
        while self.end < self.bytes.len() {
            match self.reader.read(&mut self.bytes[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(read) => self.end += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TocError::Unpack(error)),
            }
        }
        Ok(())
    }

    /// The next byte that is not white space, not consumed.
    fn next_byte(&mut self) -> Result<u8, TocError> {
        loop {
            while self.start < self.end {
                match self.bytes[self.start] {
                    b' ' | b'\t' | b'\n' | b'\r' => self.start += 1,
                    byte => return Ok(byte),
                }
            }
            if self.ended {
                return Err(self.wrong("it ends too early"));
            }
            self.fill()?;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), TocError> {
        let found = self.next_byte()?;
        if found != byte {
            return Err(self.wrong(&format!(
                "{:?} is expected, {:?} is found",
                char::from(byte),
                char::from(found)
            )));
        }
        self.start += 1;
        Ok(())
    }

    /// Consumes a comma (true) or the closing byte (false).
    fn comma_or(&mut self, close: u8) -> Result<bool, TocError> {
        if self.next_byte()? == b',' {
            self.start += 1;
            return Ok(true);
        }
        self.expect(close)?;
        Ok(false)
    }

    fn nothing_more(&mut self) -> Result<(), TocError> {
        loop {
            if self.bytes[self.start..self.end]
                .iter()
                .any(|b| !b.is_ascii_whitespace())
            {
                return Err(self.wrong("something follows its end"));
            }
            self.start = self.end;
            if self.ended {
                return Ok(());
            }
            self.fill()?;
        }
    }

    /// Parses one value of a few bytes.
    fn value<T: for<'a> Deserialize<'a>>(
        &mut self,
        mut take: impl FnMut(T) -> Result<(), TocError>,
    ) -> Result<(), TocError> {
        self.next_byte()?;
        loop {
            let slice = &self.bytes[self.start..self.end];
            let mut values = Deserializer::from_slice(slice).into_iter::<T>();
            let step = match values.next() {
                // A number that ends where the window does may go on.
                Some(Ok(_)) if values.byte_offset() == slice.len() && !self.ended => Step::More,
                Some(Ok(value)) => Step::Done(take(value), values.byte_offset()),
                Some(Err(error)) if error.is_eof() && !self.ended => Step::More,
                Some(Err(error)) => Step::Bad(error, None),
                None => Step::More,
            };
            match step {
                Step::Done(result, used) => {
                    self.start += used;
                    return result;
                }
                Step::More if self.ended => return Err(self.wrong("it ends too early")),
                Step::More => self.fill()?,
                Step::Bad(error, _) => return Err(self.wrong(&plain(&error))),
            }
        }
    }

    /// Parses one entry where it lies.
    fn entry(
        &mut self,
        number: u64,
        on_entry: &mut impl FnMut(RawEntry<'_>) -> Result<(), TocError>,
    ) -> Result<(), TocError> {
        if self.next_byte()? != b'{' {
            return Err(self.wrong(&format!("entry {number} is no object")));
        }
        loop {
            let slice = &self.bytes[self.start..self.end];
            let mut values = Deserializer::from_slice(slice).into_iter::<RawEntry<'_>>();
            let step = match values.next() {
                Some(Ok(entry)) => Step::Done(on_entry(entry), values.byte_offset()),
                Some(Err(error)) if error.is_eof() && !self.ended => Step::More,
                None if !self.ended => Step::More,
                Some(Err(error)) => Step::Bad(error, name(slice)),
                None => return Err(self.wrong("it ends too early")),
            };
            match step {
                Step::Done(result, used) => {
                    self.start += used;
                    return result;
                }
                Step::More => self.fill()?,
                // The fields are wrong in a JSON that is none the less one.
                Step::Bad(error, name) if error.classify() == Category::Data || name.is_some() => {
                    return Err(TocError::entry(
                        number,
                        name.as_deref().unwrap_or("?"),
                        Refusal::Fields(plain(&error)),
                    ));
                }
                Step::Bad(error, _) => {
                    return Err(self.wrong(&format!("entry {number}: {}", plain(&error))));
                }
            }
        }
    }

    fn wrong(&self, why: &str) -> TocError {
        TocError::Json {
            at: self.read + self.start as u64,
            why: why.to_owned(),
        }
    }
}

/// The name of an entry that cannot be parsed otherwise.
fn name(slice: &[u8]) -> Option<String> {
    let mut values = Deserializer::from_slice(slice).into_iter::<NameOnly<'_>>();
    match values.next() {
        Some(Ok(entry)) => Some(entry.name.to_string()),
        _ => None,
    }
}

/// serde_json's message without line and column, which would be those of the window.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].chars().take(200).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// Hands out one byte at a time, so that every place is the window's end once.
    struct Drip<'a>(&'a [u8]);
    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let (Some((first, rest)), false) = (self.0.split_first(), buf.is_empty()) else {
                return Ok(0);
            };
            buf[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    fn names(json: &[u8], max: usize) -> Result<Vec<String>, TocError> {
        let mut names = Vec::new();
        read_entries(Drip(json), max, |entry| {
            names.push(entry.name.to_string());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn entries_come_in_order_whatever_the_keys_around_them() {
        for json in [
            r#"{"version":1,"entries":[{"name":"a"},{"name":"b"}]}"#,
            r#" { "entries" : [ {"name":"a"} , {"name" : "b"} ] , "x":{"entries":[]}, "version" : 1 } "#,
            "{\n\t\"version\": 1,\n\t\"entries\": [\n\t\t{\"name\":\"a\"},\n\t\t{\"name\":\"b\"}\n\t],\"tarSplitDigest\":\"x\"}",
        ] {
            assert_eq!(
                names(json.as_bytes(), 1 << 20).unwrap(),
                ["a", "b"],
                "{json}"
            );
        }
        for json in [
            r#"{"version":1,"entries":[]}"#,
            r#"{"version":1,"entries":null}"#,
        ] {
            assert!(names(json.as_bytes(), 1 << 20).unwrap().is_empty());
        }
    }

    #[test]
    fn a_window_smaller_than_the_json_moves_over_it() {
        let entries: Vec<String> = (0..500)
            .map(|n| format!("{{\"name\":\"file-{n}\"}}"))
            .collect();
        let json = format!("{{\"version\":1,\"entries\":[{}]}}", entries.join(", "));
        let found = names(json.as_bytes(), 100).unwrap();
        assert_eq!(found.len(), 500);
        assert_eq!(found[499], "file-499");
    }

    #[test]
    fn what_is_no_toc_is_refused() {
        for json in [
            "",
            "[]",
            "{",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":1,"entries":{}}"#,
            r#"{"version":1,"entries":[1]}"#,
            r#"{"version":1,"entries":[{"name":"a"}"#,
            r#"{"version":1,"entries":[{"name":"a"}{"name":"b"}]}"#,
            r#"{"version":1,"entries":[{"name":"a"},]}"#,
            r#"{"version":1,"entries":[],"entries":[]}"#,
            r#"{"version":1,"entries":[]} x"#,
            r#"{"version":"1","entries":[]}"#,
            r#"{1:1,"entries":[]}"#,
        ] {
            let found = names(json.as_bytes(), 1 << 20);
            assert!(
                matches!(found, Err(TocError::Json { .. } | TocError::Version(None))),
                "{json}: {found:?}"
            );
        }
        for (json, version) in [
            (r#"{"entries":[]}"#, None),
            (r#"{"version":2,"entries":[]}"#, Some(2)),
        ] {
            let found = names(json.as_bytes(), 1 << 20);
            assert!(
                matches!(found, Err(TocError::Version(v)) if v == version),
                "{found:?}"
            );
        }
    }

    #[test]
    fn an_entry_larger_than_the_limit_is_refused() {
        let json = format!(
            "{{\"version\":1,\"entries\":[{{\"name\":\"{}\"}}]}}",
            "x".repeat(5000)
        );
        assert!(matches!(
            names(json.as_bytes(), 1000),
            Err(TocError::Json { .. })
        ));
    }

    #[test]
    fn wrong_fields_name_the_entry() {
        let json = br#"{"version":1,"entries":[{"name":"ok"},{"name":"bad","size":-1}]}"#;
        let error = names(json, 1 << 20).unwrap_err();
        assert!(
            matches!(&error, TocError::Entry { number: 2, name, why: Refusal::Fields(_) } if name == "bad"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(json: Vec<u8>) {
            let _ = names(&json, 1 << 10);
        }

        #[test]
        fn the_same_entries_as_a_whole_parse(names_in in proptest::collection::vec(".{0,30}", 0..40), max in 300_usize..2000) {
            let entries: Vec<_> = names_in.iter().map(|name| serde_json::json!({"name": name, "size": 7})).collect();
            let json = serde_json::to_vec(&serde_json::json!({"version": 1, "entries": entries})).unwrap();
            prop_assert_eq!(names(&json, max).unwrap(), names_in);
        }
    }
}
