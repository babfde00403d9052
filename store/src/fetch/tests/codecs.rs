//! Decoding what real encoders write, and refusing what does not fit.

use proptest::prelude::*;

use super::*;
use crate::fetch::decode::{DecodeError, Decoders};

fn chunk(bytes: &[u8], skip: usize) -> Chunk {
    Chunk {
        id: 0,
        node: 0,
        file_offset: 0,
        len: bytes.len() as u64,
        data_offset: 0,
        span: 0..1,
        skip: skip as u64,
        digest: Digest::of(bytes),
        zeros: false,
    }
}

fn decode(format: LayerFormat, span: &[u8], chunk: &Chunk) -> Result<Vec<u8>, DecodeError> {
    let mut answer = None;
    Decoders::new()
        .unwrap()
        .chunks(format, span, std::slice::from_ref(chunk), |_, decoded| {
            answer = Some(decoded.map(<[u8]>::to_vec));
        });
    answer.unwrap()
}

use LayerFormat::{Estargz, ZstdChunked};

#[test]
fn a_member_may_hold_more_than_the_chunk() {
    let bytes = content(1, 5000);
    for extra in [0, 1, 512, 40_000, 3 << 20] {
        let mut member = bytes.clone();
        member.extend(content(2, extra));
        let decoded = decode(Estargz, &gzip(&member), &chunk(&bytes, 0)).unwrap();
        assert_eq!(decoded, bytes, "{extra} bytes more");
    }
}

#[test]
fn a_span_may_hold_more_than_one_member() {
    let bytes = content(1, 5000);
    let mut span = gzip(&bytes);
    span.extend(gzip(&content(3, 2000)));
    assert_eq!(decode(Estargz, &span, &chunk(&bytes, 0)).unwrap(), bytes);
    let mut split = gzip(&bytes[..100]);
    split.extend(gzip(&bytes[100..]));
    assert_eq!(decode(Estargz, &split, &chunk(&bytes, 0)).unwrap(), bytes);
}

#[test]
fn chunks_that_share_a_span_are_cut_out_of_it() {
    let whole = content(5, 9000);
    for span in [
        gzip(&whole),
        [gzip(&whole[..4000]), gzip(&whole[4000..])].concat(),
    ] {
        let mut good = vec![
            chunk(&whole[..1000], 0),
            chunk(&whole[1512..4000], 1512),
            chunk(&whole[4096..8999], 4096),
        ];
        // One that reaches past the end must not spoil the others.
        let mut bad = chunk(&whole[8000..], 8000);
        bad.len += 1;
        good.push(bad);
        let mut lengths = Vec::new();
        Decoders::new()
            .unwrap()
            .chunks(Estargz, &span, &good, |_, decoded| {
                lengths.push(decoded.map(<[u8]>::len).ok());
            });
        assert_eq!(lengths, [Some(1000), Some(2488), Some(4903), None]);
    }
}

#[test]
fn a_frame_may_hold_more_than_the_chunk_and_never_less() {
    let bytes = content(1, 5000);
    for extra in [0, 1, 512, 3 << 20] {
        let mut frame = bytes.clone();
        frame.extend(content(2, extra));
        let frame = zstd::bulk::compress(&frame, 3).unwrap();
        let decoded = decode(ZstdChunked, &frame, &chunk(&bytes, 0)).unwrap();
        assert_eq!(decoded, bytes, "{extra} bytes more");
    }
    let frame = zstd::bulk::compress(&bytes, 3).unwrap();
    let mut long = chunk(&bytes, 0);
    long.len += 1;
    assert!(matches!(
        decode(ZstdChunked, &frame, &long),
        Err(DecodeError::Length {
            expected: 5001,
            found: 5000
        })
    ));
}

#[test]
fn one_chunk_behind_the_end_does_not_take_the_others_with_it() {
    let bytes = content(1, 5000);
    for (format, span) in [
        (Estargz, gzip(&bytes)),
        (ZstdChunked, zstd::bulk::compress(&bytes, 3).unwrap()),
    ] {
        let mut chunks: Vec<Chunk> = (0..5000).map(|at| chunk(&bytes[at..=at], at)).collect();
        chunks.push(chunk(&bytes[..2], 4999));
        let mut endless = chunk(&bytes[..2], 0);
        endless.len = u64::MAX;
        chunks.push(endless);
        let mut good = 0;
        let mut bad = Vec::new();
        Decoders::new()
            .unwrap()
            .chunks(format, &span, &chunks, |_, decoded| match decoded {
                Ok(_) => good += 1,
                Err(error) => bad.push(error),
            });
        assert_eq!(good, 5000);
        assert!(
            matches!(
                bad[..],
                [
                    DecodeError::Length {
                        expected: 5001,
                        found: 5000
                    },
                    DecodeError::TooLarge(u64::MAX)
                ]
            ),
            "{bad:?}"
        );
    }
}

#[test]
fn other_bytes_are_refused() {
    let bytes = content(1, 5000);
    for format in [Estargz, ZstdChunked] {
        let encode = |bytes: &[u8]| match format {
            Estargz => gzip(bytes),
            ZstdChunked => zstd::bulk::compress(bytes, 3).unwrap(),
        };
        let wanted = chunk(&bytes, 0);
        let other = decode(format, &encode(&content(2, 5000)), &wanted);
        assert!(
            matches!(other, Err(DecodeError::Digest { .. })),
            "{other:?}"
        );
        assert!(decode(format, &encode(&bytes[1..]), &wanted).is_err());
        assert!(decode(format, &encode(&bytes)[1..], &wanted).is_err());
        assert!(decode(format, b"<html>", &wanted).is_err());
        assert!(decode(format, b"", &wanted).is_err());
        let mut endless = wanted;
        endless.len = u64::MAX;
        assert!(decode(format, &encode(&bytes), &endless).is_err());
    }
}

proptest! {
    #[test]
    fn only_the_right_bytes_come_out(
        len in 1..4000_usize, skip in 0..600_usize, at in any::<prop::sample::Index>(), flip in 0..=255_u8,
        gz in any::<bool>(),
    ) {
        let whole = content(len, skip + len);
        let format = if gz { Estargz } else { ZstdChunked };
        let mut span = if gz { gzip(&whole) } else { zstd::bulk::compress(&whole, 3).unwrap() };
        let at = at.index(span.len());
        span[at] ^= flip;
        let wanted = chunk(&whole[skip..], skip);
        match decode(format, &span, &wanted) {
            Ok(decoded) => prop_assert_eq!(&decoded, &whole[skip..]),
            Err(_) => prop_assert_ne!(flip, 0),
        }
    }
}
