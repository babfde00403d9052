//! Text of a profile made harmless for HTML: in elements and in quoted attributes.

/// Characters of a text that are kept in full.
const LONG: usize = 300;

/// `raw` with everything escaped that HTML gives a meaning. Control characters and those that turn the direction of
/// writing become U+FFFD: they could make one path look like another.
pub(super) fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    for c in shortened(raw, LONG).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() || turns(c) => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// At most `limit` characters: of a path its end says most, so the beginning goes.
pub(super) fn shortened(raw: &str, limit: usize) -> String {
    let count = raw.chars().count();
    if count <= limit {
        return raw.to_owned();
    }
    let mut short = "\u{2026}".to_owned();
    short.extend(raw.chars().skip(count - limit.saturating_sub(1)));
    short
}

/// Marks, embeddings, overrides and isolates of writing direction.
const fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_means_something_to_html_is_left() {
        assert_eq!(
            text("</title><script>alert('\"&')</script>"),
            "&lt;/title&gt;&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"
        );
        assert_eq!(text("a\u{0}b\u{1b}[2J\n"), "a\u{fffd}b\u{fffd}[2J\u{fffd}");
        assert_eq!(text("gpj.\u{202e}exe"), "gpj.\u{fffd}exe");
        assert_eq!(text("größe 大"), "größe 大");
    }

    #[test]
    fn long_texts_keep_their_end() {
        assert_eq!(shortened("/usr/lib/x.so", 6), "\u{2026}/x.so");
        assert_eq!(shortened("/x.so", 5), "/x.so");
        assert_eq!(text(&"ß".repeat(5000)).chars().count(), LONG);
        // Cut first, escaped then: no half of an entity.
        assert!(text(&"<".repeat(5000)).ends_with("&lt;&lt;"));
    }
}
