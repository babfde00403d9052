//! One entry of a TOC as its JSON says it, and how its texts are read.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// An entry; texts are borrowed from the JSON where they hold no escapes. Fields of both formats, those that no reader
/// needs left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawEntry<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub link_name: Text<'a>,
    pub mode: Option<u64>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    #[serde(borrow)]
    pub modtime: Text<'a>,
    pub dev_major: Option<u64>,
    pub dev_minor: Option<u64>,
    #[serde(borrow)]
    pub xattrs: Option<BTreeMap<Text<'a>, Text<'a>>>,
    #[serde(borrow)]
    pub digest: Text<'a>,
    pub offset: Option<u64>,
    pub end_offset: Option<u64>,
    pub inner_offset: Option<u64>,
    pub chunk_size: Option<u64>,
    pub chunk_offset: Option<u64>,
    #[serde(borrow)]
    pub chunk_digest: Text<'a>,
    #[serde(borrow)]
    pub chunk_type: Text<'a>,
}

/// Only what names an entry whose other fields are wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NameOnly<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
}

/// A JSON text, borrowed if possible; `null` is the empty text.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E: Error>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// Seconds since 1970 and nanoseconds of a time like `2006-01-02T15:04:05.999+07:00`; `None` if it is not one.
pub(super) fn rfc3339(text: &str) -> Option<(i64, u32)> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        bytes.get(range)?.iter().try_fold(0, |sum, b| {
            b.is_ascii_digit()
                .then(|| sum * 10 + i64::from(b.wrapping_sub(b'0')))
        })
    };
    let at = |n: usize, allowed: &[u8]| bytes.get(n).is_some_and(|b| allowed.contains(b));
    if !(at(4, b"-") && at(7, b"-") && at(10, b"Tt") && at(13, b":") && at(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    // 60 is a leap second.
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = bytes.get(19..)?;
    let mut nanoseconds = 0_u32;
    if let Some((b'.', fraction)) = rest.split_first() {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let padded = fraction[..digits].iter().chain(std::iter::repeat(&b'0'));
        for digit in padded.take(9) {
            nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
        }
        rest = &fraction[digits..];
    }
    let zone = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2]
            if [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()) =>
        {
            let two = |tens: &u8, ones: &u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
            let (hours, minutes) = (two(h1, h2), two(m1, m2));
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    let days = days_since_1970(year, month, day);
    Some((
        days * 86_400 + hour * 3600 + minute * 60 + second - zone,
        nanoseconds,
    ))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: counts from March, so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    // 719_468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
        - 1
        - 719_468
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("2000-02-29T12:30:15Z", (951_827_415, 0)),
            (
                "2024-05-06T07:08:09.123456789Z",
                (1_714_979_289, 123_456_789),
            ),
            ("2024-05-06T07:08:09.5+02:30", (1_714_970_289, 500_000_000)),
            ("1969-12-31T23:59:59Z", (-1, 0)),
            ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
            ("9999-12-31T23:59:59Z", (253_402_300_799, 0)),
        ] {
            assert_eq!(rfc3339(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "yesterday",
            "2024-05-06",
            "2024-05-06T07:08:09",
            "2024-13-06T07:08:09Z",
            "2024-05-06T25:08:09Z",
            "2024-05-06T07:08:09.Z",
            "2024-05-06T07:08:09+1:00",
            "2024-05-06T07:08:09Zx",
            "-024-05-06T07:08:09Z",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn an_entry_borrows_its_texts_and_takes_null_for_nothing() {
        let json = r#"{"name":"a/b","type":"reg","linkName":null,"size":5,"xattrs":{"user.x":"YQ==","user.y":null},"new":[1,{"x":2}]}"#;
        let entry: RawEntry<'_> = serde_json::from_str(json).unwrap();
        assert!(matches!(&entry.name.0, Cow::Borrowed("a/b")));
        assert_eq!(&*entry.link_name, "");
        assert_eq!(entry.size, Some(5));
        assert_eq!(entry.xattrs.unwrap().len(), 2);
    }

    #[test]
    fn negative_and_fractional_numbers_are_refused() {
        for json in [
            r#"{"size":-1}"#,
            r#"{"offset":1.5}"#,
            r#"{"uid":4294967296}"#,
        ] {
            assert!(
                serde_json::from_str::<RawEntry<'_>>(json).is_err(),
                "{json}"
            );
        }
    }
}
