//! The body of a range request, and whether an answer is the one that was asked for.
//!
//! Invariant: bytes are handed out only from where they were asked for, and no more than were asked for; everything
//! else is an error that says what the registry did.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap},
};
use url::Url;

use super::{
    Asked, Client, RegistryError, Repository,
    ahead::Piece,
    ask,
    error::{Failure, Question},
    transport::{TOO_SLOW, Transport, authority, is_html},
};
use crate::{
    digest::Digest,
    metrics::{ByLane, Lane, Metrics},
};

/// Bytes before a range that are read and thrown away when a registry sends the whole blob instead of the range.
pub(super) const MAX_SKIP: u64 = 4 << 20;

/// Metadata is asked for in pieces of about so many bytes, and in so many at most: a new connection is slow at first (ten
/// segments in the first round trip, then twice as many each; RFC 6928), one of many gets its share of the link only,
/// and what follows finds more than one connection. TOCs of usual layers are shorter: an image of two opens with four
/// requests.
pub(super) const PIECE: u64 = 1 << 20;
const MAX_PIECES: u64 = 8;

/// How many pieces of about `each` bytes so many bytes of metadata are asked for in.
pub(crate) fn pieces(bytes: u64, each: u64) -> usize {
    usize::try_from(bytes.div_ceil(each).clamp(1, MAX_PIECES)).unwrap_or(1)
}

/// A range in (at most) so many equal pieces; an empty one is one piece.
pub(crate) fn in_pieces(
    range: &Range<u64>,
    count: usize,
) -> impl Iterator<Item = Range<u64>> + use<> {
    let range = range.clone();
    let bytes = range.end.saturating_sub(range.start);
    let piece = bytes.div_ceil(count.max(1) as u64).max(1);
    (0..bytes.div_ceil(piece).max(1)).map(move |n| {
        let start = range.start.saturating_add(n * piece);
        start..start.saturating_add(piece).min(range.end)
    })
}

/// The body of a range request; bytes start exactly where they were asked for, whatever the registry answered.
#[derive(Debug)]
pub struct RangeBody {
    question: Arc<Question>,
    transport: Arc<Transport>,
    host: String,
    response: Option<Response>,
    skip: u64,
    wanted: u64,
    left: u64,
    /// The answer ends where the range ends: more bytes are a fault of the registry.
    ends_there: bool,
    /// For bytes that are read and thrown away, which no caller can count.
    metrics: Arc<Metrics>,
    early: Option<EarlyBytes>,
}

/// Bytes that were asked for ahead.
#[derive(Debug)]
struct EarlyBytes {
    /// In order; the first holds `position`.
    pieces: VecDeque<Arc<Piece>>,
    position: u64,
    end: u64,
    /// For what does not come.
    client: Client,
    repository: Repository,
    blob: Digest,
    size: u64,
}

/// How an answer's body lies to the range.
#[derive(Debug, PartialEq, Eq)]
struct Fit {
    /// Bytes before the range.
    skip: u64,
    /// Nothing may follow the range.
    ends_there: bool,
}

impl RangeBody {
    pub(super) fn empty(
        question: Arc<Question>,
        transport: Arc<Transport>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            question,
            transport,
            host: String::new(),
            response: None,
            skip: 0,
            wanted: 0,
            left: 0,
            ends_there: false,
            metrics,
            early: None,
        }
    }

    /// A range that lies in what was asked for ahead.
    pub(super) fn of_early(
        client: &Client,
        repository: &Repository,
        (blob, size): (Digest, u64),
        range: &Range<u64>,
        pieces: VecDeque<Arc<Piece>>,
    ) -> Self {
        let inner = &client.inner;
        let question = ask(repository, Asked::Range(blob, range.clone()));
        let early = EarlyBytes {
            pieces,
            position: range.start,
            end: range.end,
            client: client.clone(),
            repository: repository.clone(),
            blob,
            size,
        };
        Self {
            wanted: range.end - range.start,
            early: Some(early),
            ..Self::empty(
                question,
                Arc::clone(&inner.transport),
                Arc::clone(&inner.metrics),
            )
        }
    }

    /// Whether the bytes were asked for ahead: no request is made for them now.
    #[must_use]
    pub const fn is_early(&self) -> bool {
        self.early.is_some()
    }

    /// Takes an answer if it is one to a request for `range` of a blob of `size` bytes.
    pub(super) async fn take(
        question: Arc<Question>,
        transport: Arc<Transport>,
        metrics: Arc<Metrics>,
        url: &Url,
        response: Response,
        size: u64,
        range: &Range<u64>,
    ) -> Result<Self, RegistryError> {
        let host = authority(url);
        if response.status().is_success() && is_html(response.headers()) {
            return Err(question.fails(transport.page(url, response).await));
        }
        if !response.status().is_success() {
            return Err(question.fails(transport.refusal(url, response).await));
        }
        let fit = fit(&host, response.status(), response.headers(), size, range)
            .map_err(|failure| question.fails(failure))?;
        let wanted = range.end - range.start;
        Ok(Self {
            question,
            transport,
            host,
            response: Some(response),
            skip: fit.skip,
            wanted,
            left: wanted,
            ends_there: fit.ends_there,
            metrics,
            early: None,
        })
    }

    /// The next piece; `None` at the end of what was asked for. A body that ends early is an error. After an error
    /// there is only `None`. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        if let Some(early) = &mut self.early {
            if early.position == early.end {
                return None;
            }
            while let Some(piece) = early.pieces.front() {
                if let Some(bytes) = piece.read(early.position, early.end).await {
                    early.position += bytes.len() as u64;
                    return Some(Ok(bytes));
                }
                if !piece.ends_at(early.position) {
                    break;
                }
                early.pieces.pop_front();
            }
            // It did not come: the rest is asked for now.
            let range = early.position..early.end;
            let opened = early
                .client
                .open_network(&early.repository, &early.blob, early.size, &range, false)
                .await;
            match opened {
                Ok(body) => *self = body,
                Err(error) => {
                    early.position = early.end;
                    return Some(Err(error));
                }
            }
        }
        loop {
            let response = self.response.as_mut()?;
            let piece = self.transport.piece(response).await;
            let mut piece = match piece {
                Ok(Some(piece)) if piece.is_empty() => continue,
                Ok(Some(piece)) => piece,
                Ok(None) if self.left == 0 => {
                    self.response = None;
                    return None;
                }
                Ok(None) => return self.early(String::new()),
                // Everything is here; how the connection ends is of no interest.
                Err(_) if self.left == 0 => {
                    self.response = None;
                    return None;
                }
                Err(cause) => return self.early(cause),
            };
            if self.skip > 0 {
                let waste = self.skip.min(piece.len() as u64);
                self.skip -= waste;
                let lane = ByLane {
                    lane: Lane::Metadata,
                };
                self.metrics
                    .fetched_bytes
                    .get_or_create(&lane)
                    .inc_by(waste);
                piece = piece.split_off(usize::try_from(waste).unwrap_or(piece.len()));
                if piece.is_empty() {
                    continue;
                }
            }
            if piece.len() as u64 > self.left {
                if self.ends_there {
                    self.response = None;
                    let (host, wanted) = (self.host.clone(), self.wanted);
                    return Some(Err(self.question.fails(Failure::TooLong { host, wanted })));
                }
                piece.truncate(usize::try_from(self.left).unwrap_or(piece.len()));
            }
            self.left -= piece.len() as u64;
            if self.left == 0 && !self.ends_there {
                self.response = None;
            }
            return Some(Ok(piece));
        }
    }

    fn early(&mut self, cause: String) -> Option<Result<Bytes, RegistryError>> {
        self.response = None;
        Some(Err(self.question.fails(Failure::EarlyEnd {
            host: self.host.clone(),
            got: self.wanted - self.left,
            wanted: self.wanted,
            cause,
        })))
    }

    /// Puts all of it, `wanted` bytes, into `all` and nothing else. Whoever sends it byte by byte is not waited for.
    pub(super) async fn collect(mut self, all: &mut BytesMut) -> Result<(), RegistryError> {
        all.clear();
        all.reserve(usize::try_from(self.wanted).unwrap_or(0));
        let until = self
            .transport
            .patience(self.wanted.saturating_add(self.skip));
        loop {
            let next = tokio::time::timeout_at(until, self.next()).await;
            match next.unwrap_or_else(|_| self.early(TOO_SLOW.to_owned())) {
                Some(piece) => all.extend_from_slice(&piece?),
                None => return Ok(()),
            }
        }
    }
}

/// Where the bytes asked for lie in the body of an answer with status 2xx.
fn fit(
    host: &str,
    status: StatusCode,
    headers: &HeaderMap,
    size: u64,
    range: &Range<u64>,
) -> Result<Fit, Failure> {
    let host = || host.to_owned();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(encoding) = text(CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Err(Failure::Encoding {
            host: host(),
            encoding: encoding.chars().take(40).collect(),
        });
    }
    let announced = text(CONTENT_LENGTH).and_then(|value| value.trim().parse::<u64>().ok());
    let length = |wanted| match announced {
        Some(announced) if announced != wanted => Err(Failure::Length {
            host: host(),
            announced,
            wanted,
        }),
        _ => Ok(()),
    };
    match status {
        StatusCode::PARTIAL_CONTENT => {
            let header = text(CONTENT_RANGE).unwrap_or_default();
            let total_fits = |total: Option<u64>| total.is_none_or(|total| total == size);
            match content_range(header) {
                Some((first, last, total))
                    if first == range.start
                        && last.checked_add(1) == Some(range.end)
                        && total_fits(total) => {}
                _ => {
                    return Err(Failure::ContentRange {
                        host: host(),
                        got: header.chars().take(80).collect(),
                        size,
                    });
                }
            }
            length(range.end - range.start)?;
            Ok(Fit {
                skip: 0,
                ends_there: true,
            })
        }
        StatusCode::OK => {
            length(size)?;
            if range.start > MAX_SKIP {
                return Err(Failure::RangeIgnored {
                    host: host(),
                    waste: range.start,
                });
            }
            Ok(Fit {
                skip: range.start,
                ends_there: range.end == size,
            })
        }
        other => Err(Failure::Status {
            host: host(),
            status: other.as_u16(),
            excerpt: String::new(),
            retry_after: None,
            hint: "",
        }),
    }
}

/// `bytes first-last/total`, total `None` for `*`.
fn content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (unit, rest) = header.trim().split_once(' ')?;
    let (span, total) = rest.trim().split_once('/')?;
    let (first, last) = span.split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;
    use reqwest::header::HeaderName;

    use super::*;

    #[test]
    fn pieces_are_about_equal_no_more_than_eight_and_none_for_little() {
        for (bytes, expected) in [
            (0, 1),
            (1, 1),
            (PIECE, 1),
            (PIECE + 1, 2),
            (3 * PIECE, 3),
            (8 * PIECE + 1, 8),
            (100 * PIECE, 8),
        ] {
            let count = pieces(bytes, PIECE);
            let pieces: Vec<_> = in_pieces(&(7..7 + bytes), count).collect();
            assert_eq!(pieces.len(), expected, "{bytes}");
            assert_eq!((pieces[0].start, pieces[expected - 1].end), (7, 7 + bytes));
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            let longest = pieces.iter().map(|piece| piece.end - piece.start).max();
            assert!(longest.unwrap() <= bytes.div_ceil(expected as u64));
        }
    }

    fn answer(
        status: u16,
        headers: &[(HeaderName, &str)],
        range: Range<u64>,
    ) -> Result<Fit, Failure> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        fit(
            "h",
            StatusCode::from_u16(status).unwrap(),
            &headers,
            10 << 20,
            &range,
        )
    }

    #[test]
    fn the_right_range_is_taken() {
        let exact = Ok(Fit {
            skip: 0,
            ends_there: true,
        });
        let range = "bytes 100-199/10485760";
        assert_eq!(answer(206, &[(CONTENT_RANGE, range)], 100..200), exact);
        assert_eq!(
            answer(
                206,
                &[(CONTENT_RANGE, range), (CONTENT_LENGTH, "100")],
                100..200
            ),
            exact
        );
        assert_eq!(
            answer(206, &[(CONTENT_RANGE, "bytes 100-199/*")], 100..200),
            exact
        );
    }

    #[test]
    fn a_whole_blob_is_skipped_into_within_reason() {
        let length = [(CONTENT_LENGTH, "10485760")];
        let skip = |skip, ends_there| Ok(Fit { skip, ends_there });
        assert_eq!(answer(200, &length, 100..200), skip(100, false));
        assert_eq!(answer(200, &[], 100..10 << 20), skip(100, true));
        assert!(matches!(
            answer(200, &length, 5 << 20..6 << 20),
            Err(Failure::RangeIgnored {
                waste: 0x50_0000,
                ..
            })
        ));
        assert!(matches!(
            answer(200, &[(CONTENT_LENGTH, "99")], 0..10),
            Err(Failure::Length { .. })
        ));
    }

    #[test]
    fn other_answers_are_refused() {
        for range in [
            "bytes 100-198/10485760",
            "bytes 0-99/10485760",
            "bytes 100-199/5",
            "",
            "bytes */10485760",
        ] {
            let answer = answer(206, &[(CONTENT_RANGE, range)], 100..200);
            assert!(
                matches!(answer, Err(Failure::ContentRange { .. })),
                "{range}"
            );
        }
        assert!(matches!(
            answer(206, &[], 100..200),
            Err(Failure::ContentRange { .. })
        ));
        let gzip = [
            (CONTENT_ENCODING, "gzip"),
            (CONTENT_RANGE, "bytes 100-199/*"),
        ];
        assert!(matches!(
            answer(206, &gzip, 100..200),
            Err(Failure::Encoding { .. })
        ));
        let longer = [(CONTENT_LENGTH, "101"), (CONTENT_RANGE, "bytes 100-199/*")];
        assert!(matches!(
            answer(206, &longer, 100..200),
            Err(Failure::Length { .. })
        ));
        assert!(matches!(
            answer(204, &[], 100..200),
            Err(Failure::Status { status: 204, .. })
        ));
    }

    proptest! {
        #[test]
        fn content_ranges_are_read_back(first in any::<u32>(), more in any::<u32>(), total in any::<Option<u64>>()) {
            let (first, last) = (u64::from(first), u64::from(first) + u64::from(more));
            let total_text = total.map_or("*".into(), |t| t.to_string());
            prop_assert_eq!(content_range(&format!("bytes {first}-{last}/{total_text}")), Some((first, last, total)));
        }

        #[test]
        fn any_content_range_is_read(header in "\\PC{0,40}|bytes [0-9*/ -]{0,40}") {
            let _ = content_range(&header);
        }
    }
}
