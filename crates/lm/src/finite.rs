//! Numbers that are none: infinities and not-a-number in stored tensors.
//!
//! They are looked for in the bytes as they are stored, which takes no memory and no operation of libtorch.

use tch::Kind;

/// The place of the first number that is not finite among the little-endian `bytes` of numbers of `kind`. Whole numbers are
/// always finite.
pub(crate) fn first_not_finite(bytes: &[u8], kind: Kind) -> Option<usize> {
    // A number whose exponent is all ones is an infinity or not a number.
    match kind {
        Kind::Float => place(bytes, |bytes: [u8; 4]| u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000),
        Kind::Half => place(bytes, |bytes: [u8; 2]| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00),
        Kind::BFloat16 => place(bytes, |bytes: [u8; 2]| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80),
        _ => None,
    }
}

fn place<const WIDTH: usize>(bytes: &[u8], is_odd: impl Fn([u8; WIDTH]) -> bool) -> Option<usize> {
    bytes.as_chunks().0.iter().position(|number| is_odd(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensor_bytes;
    use tch::Tensor;

    #[test]
    fn odd_numbers_are_found_in_every_kind_and_large_ones_are_not_odd() {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let find = |odd: f32| {
                let numbers = Tensor::from_slice(&[0.0, -60_000.0, 6e-5, odd, 1.0]).to_kind(kind);
                first_not_finite(&tensor_bytes(&numbers).unwrap(), kind)
            };
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(find(odd), Some(3), "{kind:?} {odd}");
            }
            assert_eq!(find(65_000.0), None, "{kind:?}");
        }
        assert_eq!(first_not_finite(&[0xff; 16], Kind::Int64), None);
        assert_eq!(first_not_finite(&[], Kind::Float), None);
    }
}
