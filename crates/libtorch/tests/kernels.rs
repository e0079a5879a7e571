//! The kernels of decoding against libtorch's own operations.

mod common;

use common::{check, numbers};
use rstest::rstest;
use saddle_libtorch::kernels::{PackedWeight, choose, linear};
use saddle_libtorch::{LibtorchError, set_threads};
use tch::{Kind, Tensor};

#[test]
fn narrower_instruction_sets_pass_the_same_tests() {
    common::run_again_with_narrower_kernels();
}

#[rstest]
fn a_packed_product_is_that_of_what_the_storage_keeps(
    #[values(1, 2, 3, 4, 7, 12, 13, 33, 200)] rows: i64,
    #[values((1, 1), (5, 3), (32, 64), (37, 300), (192, 576))] (outputs, inputs): (i64, i64),
    #[values(Kind::Float, Kind::BFloat16)] storage: Kind,
) {
    let (weight, bias) = (numbers(&[outputs, inputs], 1.0), numbers(&[outputs], 2.0));
    let input = numbers(&[rows, inputs], 3.0);
    let plain = PackedWeight::new(&weight, None, storage).unwrap();
    let biased = PackedWeight::new(&weight, Some(&bias), storage).unwrap();
    let found = linear(&[&plain, &biased], &input).unwrap();
    let stored = |tensor: &Tensor| tensor.to_kind(storage).to_kind(Kind::Double);
    let product = stored(&input).matmul(&stored(&weight).transpose(0, 1));
    let tolerance = 1e-6 * inputs as f64;
    check("plain", &found[0], &product.to_kind(Kind::Float), tolerance);
    check("biased", &found[1], &(product + bias.to_kind(Kind::Double)).to_kind(Kind::Float), tolerance);
}

#[rstest]
fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    #[values(Kind::Float, Kind::BFloat16)] storage: Kind,
) {
    let weight = PackedWeight::new(&numbers(&[1000, 700], 1.0), None, storage).unwrap();
    let input = numbers(&[40, 700], 2.0);
    let whole = linear(&[&weight], &input).unwrap().remove(0);
    for rows in 1..40 {
        set_threads(1 + rows as usize % 3).unwrap();
        let part = linear(&[&weight], &input.narrow(0, 40 - rows, rows)).unwrap().remove(0);
        assert!(part.equal(&whole.narrow(0, 40 - rows, rows)), "{rows} rows");
    }
}

#[rstest]
fn a_choice_inverts_the_cumulative_softmax(
    #[values(1, 7, 64, 1024, 3000)] width: i64,
    #[values(0.0, 0.6, 1.0, 2.0)] temperature: f64,
) {
    let logits = numbers(&[9, width], 1.0) * 5.0;
    let uniforms: Vec<f64> = (0..9).map(|row| f64::from(row) / 9.0).collect();
    let (tokens, log_probs) = choose(&logits, temperature, &uniforms).unwrap();
    let scaled = if temperature == 0.0 { logits.shallow_clone() } else { &logits / temperature };
    let expected = scaled.log_softmax(-1, Kind::Double);
    let cumulative = expected.exp().cumsum(-1, Kind::Double);
    for (row, uniform) in uniforms.iter().enumerate() {
        let at = |table: &Tensor, token: i64| table.double_value(&[row as i64, token]);
        let token = tokens[row];
        assert!((f64::from(log_probs[row]) - at(&expected, token)).abs() < 1e-5, "row {row}: {}", log_probs[row]);
        if temperature == 0.0 {
            assert_eq!(token, logits.get(row as i64).argmax(0, false).int64_value(&[]), "row {row}");
            continue;
        }
        let before = if token == 0 { 0.0 } else { at(&cumulative, token - 1) };
        assert!(
            before < uniform + 1e-6 && *uniform < at(&cumulative, token) + 1e-6,
            "row {row}: {token} for {uniform}"
        );
    }
}

#[test]
fn a_choice_among_logits_that_are_no_numbers_is_of_no_probability() {
    let mut logits = numbers(&[2, 40], 1.0);
    let _ = logits.get(0).get(3).fill_(f64::NAN);
    let _ = logits.get(1).fill_(f64::NEG_INFINITY);
    for temperature in [0.0, 1.0] {
        let (tokens, log_probs) = choose(&logits, temperature, &[0.5, 0.5]).unwrap();
        assert!(tokens.iter().all(|token| (0..40).contains(token)), "{tokens:?}");
        assert!(log_probs.iter().all(|each| each.is_nan()), "{log_probs:?}");
    }
    let _ = logits.fill_(0.0);
    assert!(choose(&logits, -1.0, &[0.5, 0.5]).is_err());
    assert!(choose(&logits, 1.0, &[0.5]).is_err());
}

#[test]
fn what_a_kernel_cannot_read_is_refused() {
    fn check<T: std::fmt::Debug>(result: Result<T, LibtorchError>) {
        assert!(matches!(result, Err(LibtorchError::Operand { .. })), "{result:?}");
    }
    let weight = PackedWeight::new(&numbers(&[4, 6], 1.0), None, Kind::Float).unwrap();
    let half = PackedWeight::new(&numbers(&[4, 6], 1.0), None, Kind::BFloat16).unwrap();
    check(linear(&[&weight], &numbers(&[2, 5], 1.0)));
    check(linear(&[&weight], &numbers(&[6, 2], 1.0).transpose(0, 1)));
    check(linear(&[&weight], &numbers(&[2, 6], 1.0).to_kind(Kind::Double)));
    check(linear(&[&weight, &half], &numbers(&[2, 6], 1.0)));
    check(PackedWeight::new(&numbers(&[4], 1.0), None, Kind::Float));
    check(PackedWeight::new(&numbers(&[4, 6], 1.0), None, Kind::Half));
}
