//! Products with frozen bfloat16 weights, and streams where there is no GPU.

use saddle_libtorch::{frozen_linear, streams};
use tch::{Device, Kind, Tensor};

/// Numbers without a pattern that are no bfloat16 numbers.
fn numbers(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.37).sin().view(shape)
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

/// The product of an input with a frozen weight, and the input's gradient of the sum of its squares.
fn product_and_gradient(weight: &Tensor, product: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
    let input = numbers(&[2, 3, weight.size()[1]]).set_requires_grad(true);
    let product = product(&input);
    let gradient = Tensor::run_backward(&[product.square().sum(Kind::Float)], &[&input], false, false).remove(0);
    (product.detach(), gradient)
}

#[test]
fn a_frozen_product_is_that_of_the_widened_weight_and_so_is_its_gradient() {
    // As it is stored, and as the transpose of what is stored.
    for weight in [numbers(&[5, 7]).to_kind(Kind::BFloat16), numbers(&[7, 5]).to_kind(Kind::BFloat16).transpose(0, 1)] {
        let wide = weight.to_kind(Kind::Float);
        let (expected, expected_gradient) = product_and_gradient(&weight, |input| input.linear::<&Tensor>(&wide, None));
        for (narrow, limit) in [(false, 1e-5), (true, 0.02)] {
            let (product, gradient) =
                product_and_gradient(&weight, |input| frozen_linear(input, &weight, narrow).unwrap());
            assert_eq!((product.kind(), gradient.kind()), (Kind::Float, Kind::Float));
            for (one, other) in [(&product, &expected), (&gradient, &expected_gradient)] {
                let scale = other.abs().max().double_value(&[]);
                let difference = largest_difference(one, other) / scale;
                assert!(difference < limit, "narrow {narrow}: {difference}");
            }
        }
    }
}

#[test]
fn without_gradients_the_product_is_the_same() {
    let (input, weight) = (numbers(&[3, 7]), numbers(&[5, 7]).to_kind(Kind::BFloat16));
    let recorded = frozen_linear(&input.copy().set_requires_grad(true), &weight, false).unwrap();
    let plain = frozen_linear(&input, &weight, false).unwrap();
    assert!(recorded.requires_grad() && !plain.requires_grad());
    assert!(recorded.detach().equal(&plain));
}

#[test]
fn operands_of_other_kinds_and_weights_that_are_trained_are_refused() {
    let (input, weight) = (numbers(&[3, 7]), numbers(&[5, 7]));
    for (weight, said) in [
        (weight.copy(), "bfloat16"),
        (weight.to_kind(Kind::BFloat16).view(-1), "matrix"),
        (weight.to_kind(Kind::BFloat16).set_requires_grad(true), "trained"),
    ] {
        let error = frozen_linear(&input, &weight, false).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn streams_are_nothing_on_a_cpu() {
    assert_eq!(streams::enter(Device::Cpu), Ok(()));
    assert_eq!(streams::synchronize(Device::Cpu), Ok(()));
}
