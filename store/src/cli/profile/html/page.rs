//! The page around the drawings: head, summary, what was fetched for nothing.

use std::fmt::Write as _;

use forelayer_profiler::model::{PAGE, Run, UnusedFile};

use super::{
    super::text::{level, time, unused},
    Drawn,
    bars::KINDS,
    chart,
    escape::text,
};
use crate::cli::human;

/// Files that were predicted and not used, in the table.
const UNUSED: usize = 20;

/// The look of the page, as that of `cargo xtask bench`. Drawings keep a width at which their text can be read, and
/// scroll in their box where the screen is narrower.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d5dae0; --read: #2f6fde; --map: #1a8f4c; --add: #8b95a1; --need: #c2571a; --exec: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171a; --faint: #343a41; --read: #6ea0ff; --map: #5fd08c; --add: #77828e; --need: #f0a063; --exec: #ff8a80 } }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2rem; overflow-wrap: anywhere } h3 { font-size: 1rem; margin-bottom: .3rem; font-weight: 600 }
.scroll { overflow-x: auto } svg { width: 100%; min-width: 54rem; height: auto; display: block } text { font-size: 14px; fill: var(--ink) } text.layer { font-weight: 600 } text.exec { fill: var(--exec) }
table { border-collapse: collapse } td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap } td:first-child, th:first-child { text-align: left } .facts td { white-space: normal }
.key span { display: inline-block; margin-right: 1.2rem } .key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.05rem }
";

/// The page. The policy in its head lets it load and run nothing, whatever the profiles say.
pub(super) fn html(drawn: &[Drawn<'_>]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Forelayer profile</title>\n<style>{STYLE}</style>\n<h1>What a start touched</h1>\n<p class=\"key\">"
    );
    let marks = KINDS.map(|(_, colour, words)| (colour, words));
    for (colour, words) in [
        ("need", "bytes needed by then"),
        ("exec", "a program starts"),
    ]
    .into_iter()
    .chain(marks)
    {
        let _ = write!(
            page,
            "<span><i style=\"background:var(--{colour})\"></i>{words}</span>"
        );
    }
    page.push_str("</p>\n");
    for drawn in drawn {
        section(&mut page, drawn);
    }
    page.push_str("</html>\n");
    page
}

fn section(page: &mut String, drawn: &Drawn<'_>) {
    let identity = &drawn.profile.identity;
    let _ = writeln!(
        page,
        "<h2>{} ({})</h2>",
        text(&identity.image),
        text(&identity.workload)
    );
    let Some(run) = drawn.run else {
        page.push_str("<p>No start was recorded.</p>\n");
        return;
    };
    summary(page, run, drawn.profile.runs.len());
    page.push_str("<h3>Milliseconds from the first exec</h3>\n");
    let _ = writeln!(page, "<div class=\"scroll\">{}</div>", chart::svg(run));
    let left = chart::execs_left(run).len();
    if left > 0 {
        let _ = writeln!(page, "<p>And {left} later programs without a mark.</p>");
    }
    for_nothing(page, run);
}

fn summary(page: &mut String, run: &Run, runs: usize) {
    let pages = |pages: u64| human(pages.saturating_mul(PAGE));
    let mut cells = vec![
        ("started", time(run.started_ms)),
        ("run", format!("{:.12}, of {runs} kept", text(&run.id))),
        ("seen by", level(run)),
        ("files touched", run.files.len().to_string()),
        ("bytes touched", pages(run.pages())),
    ];
    for (access, _, words) in KINDS {
        let ranges = run.files.iter().flat_map(|file| &file.ranges);
        let of = ranges.filter(|range| range.access == access);
        let sum: u64 = of.map(|range| u64::from(range.pages)).sum();
        if sum > 0 {
            cells.push((words, pages(sum)));
        }
    }
    cells.extend([
        ("programs started", run.execs.len().to_string()),
        ("other paths found", run.found.len().to_string()),
        ("paths not found", run.missing.len().to_string()),
        ("predicted, fetched, not touched", pages(unused(run))),
        ("events lost", run.lost.to_string()),
    ]);
    page.push_str("<table class=\"facts\">\n");
    for (name, value) in cells {
        let _ = writeln!(page, "<tr><td>{name}</td><td>{value}</td></tr>");
    }
    page.push_str("</table>\n");
}

/// What was predicted, fetched and not touched, most bytes first.
fn for_nothing(page: &mut String, run: &Run) {
    if run.predicted_unused.is_empty() {
        return;
    }
    let bytes = |file: &UnusedFile| {
        let pages = file.ranges.iter().map(|range| u64::from(range.pages));
        pages.sum::<u64>().saturating_mul(PAGE)
    };
    let mut files: Vec<_> = (run.predicted_unused.iter())
        .map(|file| (bytes(file), &file.path))
        .collect();
    files.sort_by_key(|&(bytes, path)| (std::cmp::Reverse(bytes), path));
    page.push_str("<h3>Predicted, fetched, not touched</h3>\n<div class=\"scroll\"><table><tr><th>file</th><th>bytes</th></tr>\n");
    for (bytes, path) in files.iter().take(UNUSED) {
        let _ = writeln!(
            page,
            "<tr><td>/{}</td><td>{}</td></tr>",
            text(path),
            human(*bytes)
        );
    }
    let left = files.get(UNUSED..).unwrap_or_default();
    if !left.is_empty() {
        let sum = left
            .iter()
            .fold(0, |sum: u64, (bytes, _)| sum.saturating_add(*bytes));
        let _ = writeln!(
            page,
            "<tr><td>{} more files</td><td>{}</td></tr>",
            left.len(),
            human(sum)
        );
    }
    page.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use forelayer_profiler::model::{Identity, Profile, RunExec, UnusedRange};

    use super::{super::rows::tests::*, *};

    const EVIL: &str = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>";

    fn page(image: &str, run: Option<&Run>) -> String {
        let identity = Identity::new(image, &[], &[]);
        let profile = Profile::new(identity);
        let drawn = Drawn {
            profile: &profile,
            run,
        };
        html(&[drawn])
    }

    #[test]
    fn nothing_of_a_profile_becomes_part_of_the_page_s_own_text() {
        let mut evil = run("01", vec![file(EVIL, b"top", 1, 0)]);
        evil.execs.push(RunExec {
            at_us: 0,
            path: EVIL.to_owned(),
        });
        evil.predicted_unused = vec![UnusedFile {
            path: EVIL.to_owned(),
            content: None,
            ranges: vec![UnusedRange { page: 0, pages: 16 }],
        }];
        let page = page(EVIL, Some(&evil));
        assert!(
            !page.contains("<script") && !page.contains("<img"),
            "{page}"
        );
        assert!(page.matches("&lt;img src=x onerror=&#39;").count() >= 4);
        assert!(page.contains("default-src 'none'"));
        assert!(!page.contains("http://") && !page.contains("https://"));
    }

    #[test]
    fn a_profile_without_starts_and_a_start_without_touches_are_pages_too() {
        assert!(page("h/app:1", None).contains("No start was recorded."));
        let page = page("h/app:1", Some(&run("01", Vec::new())));
        assert!(
            page.contains("<td>bytes touched</td><td>0 B</td>"),
            "{page}"
        );
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        assert!(!page.contains("<h3>Predicted"));
    }

    #[test]
    fn what_was_fetched_for_nothing_is_summed_up_behind_the_most() {
        let mut run = run("01", Vec::new());
        run.predicted_unused = (1..=30)
            .map(|pages| UnusedFile {
                path: format!("f{pages}"),
                content: None,
                ranges: vec![UnusedRange { page: 0, pages }],
            })
            .collect();
        let page = page("h/app:1", Some(&run));
        assert!(page.contains("<td>/f30</td><td>120.00 KiB</td>"), "{page}");
        assert!(!page.contains("<td>/f10</td>"));
        assert!(page.contains("<td>10 more files</td><td>220.00 KiB</td>"));
        assert!(page.contains("not touched</td><td>1.82 MiB</td>"), "{page}");
    }
}
