//! Elements of tensors as f32. All but F64 are f32 as they are, whatever the processor is set to.

use safetensors::Dtype;

/// Whether `append` can read elements of this type.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Appends the elements of `data`, an F64 as the nearest f32: ties to even, and ±∞ past the largest.
pub(super) fn append(values: &mut Vec<f32>, dtype: Dtype, data: &[u8]) {
    match dtype {
        Dtype::F32 => values.extend(data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
        Dtype::F16 => values.extend(data.as_chunks().0.iter().map(|&bytes| half(u16::from_le_bytes(bytes)))),
        Dtype::BF16 => values.extend(data.as_chunks().0.iter().map(|&bytes| brain(u16::from_le_bytes(bytes)))),
        Dtype::F64 => values.extend(data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32)),
        _ => {}
    }
}

/// An IEEE 754 binary16: a sign, 5 bits of exponent with a bias of 15, 10 of fraction.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (u32::from(bits) >> 10 & 31, u32::from(bits) & 1023);
    let magnitude = match exponent {
        0 => fraction as f32 / 16_777_216.0, // 2^24: a number below 2^-14, which is no small one as f32
        31 => f32::from_bits(255 << 23 | fraction << 13),
        _ => f32::from_bits((exponent + 127 - 15) << 23 | fraction << 13),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

/// A bfloat16: the upper half of an f32.
fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value by the formula of IEEE 754, in f64, where it is exact.
    fn half_by_formula(bits: u16) -> f64 {
        let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
        sign * match exponent {
            0 => fraction * 2_f64.powi(-14),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction) * 2_f64.powi(exponent - 15),
        }
    }

    fn read(dtype: Dtype, data: &[u8]) -> Vec<f32> {
        let mut values = Vec::new();
        append(&mut values, dtype, data);
        values
    }

    #[test]
    fn every_f16_and_bf16_is_read_exactly() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (bits, value) in (0..=u16::MAX).zip(read(Dtype::F16, &all)) {
            let (found, want) = (f64::from(value), half_by_formula(bits));
            assert!(
                found.to_bits() == want.to_bits() || found.is_nan() && want.is_nan(),
                "{bits:#06x}: {found} {want}"
            );
        }
        for (bits, value) in (0..=u16::MAX).zip(read(Dtype::BF16, &all)) {
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
        }
    }

    #[test]
    fn an_f64_is_rounded_to_the_nearest_f32() {
        let ulp = f64::from(f32::EPSILON);
        for (value, want) in [
            (0.1, 0.1_f32),
            (-0.0, -0.0),
            (1.0 + ulp / 2.0, 1.0),                      // a tie, down to even
            (1.0 + ulp * 1.5, 1.0 + f32::EPSILON * 2.0), // a tie, up to even
            (1.0 + ulp * 0.500_000_1, 1.0 + f32::EPSILON),
            (f64::from(f32::MAX) * 2.0, f32::INFINITY),
            (-1e300, f32::NEG_INFINITY),
            (1e-45, f32::from_bits(1)),
            (1e-300, 0.0),
        ] {
            assert_eq!(read(Dtype::F64, &f64::to_le_bytes(value))[0].to_bits(), want.to_bits(), "{value}");
        }
        assert!(read(Dtype::F64, &f64::NAN.to_le_bytes())[0].is_nan());
    }
}
