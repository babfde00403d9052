//! What the layers of the rows hold.

use forelayer_tests::fixtures::Entry;

/// SplitMix64: the same seed, the same content.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Bytes that no codec makes smaller.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes that a codec makes about half as many, as it does with programs: of each eight, three are noise and five a
/// word of a few.
pub(super) fn program(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: &[u8] = b"lea  mov  call push ret  test jmp  xor  ";
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let drawn = random.next();
        bytes.extend(&drawn.to_le_bytes()[..3]);
        let word = usize::from(drawn.to_le_bytes()[7] % 8) * 5;
        bytes.extend(&WORDS[word..word + 5]);
    }
    bytes.truncate(len);
    bytes
}

/// `count` files of `len` bytes in the directory `d`, in the order of their names.
pub(super) fn files(count: u32, len: usize) -> Vec<Entry> {
    let mut entries = vec![Entry::dir("d")];
    entries.extend((0..count).map(|number| Entry::file(name(number), noise(number.into(), len))));
    entries
}

/// The name of one of [`files`].
pub(super) fn name(number: u32) -> String {
    format!("d/{number:06}")
}

/// Digests of nothing, each another.
pub(super) struct Digests(Random);

impl Digests {
    pub(super) fn new(seed: u64) -> Self {
        Self(Random(seed))
    }

    pub(super) fn next(&mut self) -> String {
        let [a, b, c, d] = [(); 4].map(|()| self.0.next());
        format!("sha256:{a:016x}{b:016x}{c:016x}{d:016x}")
    }
}
