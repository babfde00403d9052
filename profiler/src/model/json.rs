//! A profile as text: JSON with one line a file, so that people can read it and `diff` can compare it; and the
//! checks on a text that may come from anybody.

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{
    MAX_BYTES, MAX_ITEMS, MAX_PAGE, MAX_PATH, MAX_RANGES, MAX_RUNS, ModelError, Profile, Run,
    SCHEMA,
};

/// Layers of one image at most; overlayfs itself stops at 500.
const MAX_LAYERS: usize = 1000;

impl Profile {
    /// Reads a profile, checks it against the limits and brings it into normal form.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn from_json(text: &[u8]) -> Result<Self, ModelError> {
        let bytes = text.len() as u64;
        if bytes > MAX_BYTES {
            return Err(ModelError::TooLarge { bytes });
        }
        // The schema first: a later version may mean other things by the same names.
        #[derive(serde::Deserialize)]
        struct Head {
            schema: u32,
        }
        let json = |e: serde_json::Error| ModelError::Json(e.to_string());
        let head: Head = serde_json::from_slice(text).map_err(json)?;
        if head.schema != SCHEMA {
            return Err(ModelError::Schema(head.schema));
        }
        let profile: Self = serde_json::from_slice(text).map_err(json)?;
        profile.checked()
    }

    /// Checks what was read against the limits and brings it into normal form.
    pub(crate) fn checked(mut self) -> Result<Self, ModelError> {
        self.check()?;
        self.normalise();
        if let Some(pair) = self.runs.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(ModelError::Value {
                place: format!("run {}", pair[0].id),
                what: "is there twice".to_owned(),
            });
        }
        Ok(self)
    }

    /// The profile as text, with a line a run's head and a line a file.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, LineAnItem::new());
        // Plain structs with string keys into memory: cannot fail.
        let _ = self.serialize(&mut serializer);
        text.push(b'\n');
        String::from_utf8(text).unwrap_or_default()
    }

    fn check(&self) -> Result<(), ModelError> {
        limit("the profile", "runs", self.runs.len(), MAX_RUNS)?;
        for (name, text) in [
            ("image", &self.identity.image),
            ("workload", &self.identity.workload),
        ] {
            if text.is_empty() || text.len() > MAX_PATH {
                return Err(ModelError::Value {
                    place: "identity".to_owned(),
                    what: format!("{name} has {} bytes, not 1 to {MAX_PATH}", text.len()),
                });
            }
        }
        self.runs.iter().try_for_each(check_run)
    }
}

fn check_run(run: &Run) -> Result<(), ModelError> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if run.id.is_empty() || run.id.len() > 64 || !run.id.bytes().all(hex) {
        return Err(ModelError::Value {
            place: format!("run {:?}", run.id.chars().take(80).collect::<String>()),
            what: "an id is 1 to 64 lower-case hexadecimal digits".to_owned(),
        });
    }
    let place = || format!("run {}", run.id);
    for (what, count, max) in [
        ("layers", run.layers.len(), MAX_LAYERS),
        ("files", run.files.len(), MAX_ITEMS),
        ("paths found", run.found.len(), MAX_ITEMS),
        ("paths not found", run.missing.len(), MAX_ITEMS),
        ("execs", run.execs.len(), MAX_ITEMS),
        ("unused files", run.predicted_unused.len(), MAX_ITEMS),
        (
            "ranges",
            run.files.iter().map(|f| f.ranges.len()).sum(),
            MAX_RANGES,
        ),
        (
            "unused ranges",
            run.predicted_unused.iter().map(|f| f.ranges.len()).sum(),
            MAX_RANGES,
        ),
    ] {
        limit(&place(), what, count, max)?;
    }
    let paths = (run.files.iter().map(|f| &f.path))
        .chain(run.predicted_unused.iter().map(|f| &f.path))
        .chain(run.execs.iter().map(|e| &e.path))
        .chain(&run.found)
        .chain(&run.missing);
    for path in paths {
        // A replaced byte takes three.
        if path.is_empty() || path.len() > 3 * MAX_PATH || path.contains('\0') {
            return Err(ModelError::Value {
                place: place(),
                what: format!("no path: {:?}", path.chars().take(80).collect::<String>()),
            });
        }
    }
    let touched =
        (run.files.iter()).flat_map(|f| f.ranges.iter().map(move |r| (&f.path, r.page, r.pages)));
    let unused = (run.predicted_unused.iter())
        .flat_map(|f| f.ranges.iter().map(move |r| (&f.path, r.page, r.pages)));
    for (path, page, pages) in touched.chain(unused) {
        let end = page.checked_add(u64::from(pages));
        if pages == 0 || end.is_none_or(|end| end > MAX_PAGE) {
            return Err(ModelError::Value {
                place: format!("{}, file {path:?}", place()),
                what: format!("no range of pages: {pages} from {page}"),
            });
        }
    }
    Ok(())
}

fn limit(place: &str, what: &'static str, count: usize, limit: usize) -> Result<(), ModelError> {
    if count > limit {
        return Err(ModelError::Limit {
            place: place.to_owned(),
            what,
            count,
            limit,
        });
    }
    Ok(())
}

/// Indents down to the items of a run's lists and writes each of those on one line.
struct LineAnItem {
    depth: usize,
    pretty: PrettyFormatter<'static>,
}

/// profile { runs [ run { files [ — what opens below is one line.
const INDENTED: usize = 4;

impl LineAnItem {
    fn new() -> Self {
        Self {
            depth: 0,
            pretty: PrettyFormatter::with_indent(b" "),
        }
    }
    const fn indents(&self) -> bool {
        self.depth <= INDENTED
    }
}

type Written = std::io::Result<()>;

impl Formatter for LineAnItem {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        self.depth += 1;
        if self.indents() {
            self.pretty.begin_array(w)
        } else {
            w.write_all(b"[")
        }
    }
    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        let indents = self.indents();
        self.depth -= 1;
        if indents {
            self.pretty.end_array(w)
        } else {
            w.write_all(b"]")
        }
    }
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> Written {
        if self.indents() {
            self.pretty.begin_array_value(w, first)
        } else if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }
    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        if self.indents() {
            self.pretty.end_array_value(w)
        } else {
            Ok(())
        }
    }
    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        self.depth += 1;
        if self.indents() {
            self.pretty.begin_object(w)
        } else {
            w.write_all(b"{")
        }
    }
    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        let indents = self.indents();
        self.depth -= 1;
        if indents {
            self.pretty.end_object(w)
        } else {
            w.write_all(b"}")
        }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> Written {
        if self.indents() {
            self.pretty.begin_object_key(w, first)
        } else if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        w.write_all(b": ")
    }
    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        if self.indents() {
            self.pretty.end_object_value(w)
        } else {
            Ok(())
        }
    }
}
