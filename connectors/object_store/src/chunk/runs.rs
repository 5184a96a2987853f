//! Parquet's hybrid of run lengths and packed bits (parquet-format, "Encodings", RLE).

/// As many equal values are a run of their own; others are packed in groups of eight.
const RUN_MIN: usize = 16;
const GROUP: usize = 8;

/// An unsigned LEB128 number.
pub fn write_varint(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// One run: `count` times the value, of so many bits.
pub fn repeated_bits(count: usize, value: u32, width: u8, out: &mut Vec<u8>) {
    write_varint(count << 1, out);
    out.extend_from_slice(&value.to_le_bytes()[..usize::from(width).div_ceil(8)]);
}

/// Indices of a dictionary, each below 2^`width`, behind the width.
pub fn write_indices(indices: &[u32], width: u8, out: &mut Vec<u8>) {
    out.push(width);
    let (mut packed_from, mut at) = (0, 0);
    while at + RUN_MIN <= indices.len() {
        let value = indices[at];
        // The last that a run needs differs where most that are none do.
        let run = if indices[at + RUN_MIN - 1] == value {
            indices[at..].iter().position(|other| *other != value).unwrap_or(indices.len() - at)
        } else {
            0
        };
        if run >= RUN_MIN {
            pack(&indices[packed_from..at], width, out);
            repeated_bits(run, value, width, out);
            at += run;
            packed_from = at;
        } else {
            at += GROUP;
        }
    }
    pack(&indices[packed_from..], width, out);
}

/// Whole groups, the last one filled with zeros.
fn pack(indices: &[u32], width: u8, out: &mut Vec<u8>) {
    if indices.is_empty() {
        return;
    }
    let groups = indices.len().div_ceil(GROUP);
    write_varint(groups << 1 | 1, out);
    let end = out.len() + groups * usize::from(width);
    out.reserve(end - out.len());
    let (mut bits, mut count) = (0_u64, 0);
    for index in indices {
        bits |= u64::from(*index) << count;
        count += u32::from(width);
        if count >= 32 {
            out.extend_from_slice(&(bits as u32).to_le_bytes());
            bits >>= 32;
            count -= 32;
        }
    }
    out.extend_from_slice(&bits.to_le_bytes()[..count.div_ceil(8) as usize]);
    out.resize(end, 0);
}
