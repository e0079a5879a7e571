//! Products and their gradients beside libtorch's own, and streams where there is no GPU.

use saddle_libtorch::products::{Factors, add_gradients, products};
use saddle_libtorch::streams;
use tch::{Device, Kind, Tensor};

/// Each with how far it may be from float32, as a share of the largest number.
const FACTORS: [(Factors, f64); 3] = [(Factors::Whole, 1e-5), (Factors::Rounded, 0.02), (Factors::Narrow, 0.02)];

/// Numbers without a pattern that are no bfloat16 numbers.
fn numbers(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.37).sin().view(shape)
}

fn assert_close(one: &Tensor, other: &Tensor, limit: f64, what: &str) {
    assert_eq!((one.kind(), one.size()), (Kind::Float, other.size()), "{what}");
    let apart = (one - other).abs().max().double_value(&[]) / other.abs().max().double_value(&[]);
    assert!(apart < limit, "{what}: {apart}");
}

/// Products of an input, and gradients of a weighted sum of them: of the input, and of the weights that are trained.
fn outcome(weights: &[Tensor], product: impl Fn(&Tensor, &[Tensor]) -> Vec<Tensor>) -> Vec<Tensor> {
    let input = numbers(&[2, 3, weights[0].size()[1]]).set_requires_grad(true);
    let mut all = product(&input, weights);
    let loss = all.iter().map(|product| (product * numbers(&product.size())).sum(Kind::Float)).sum::<Tensor>();
    let leaves: Vec<&Tensor> =
        std::iter::once(&input).chain(weights.iter().filter(|weight| weight.requires_grad())).collect();
    all.extend(Tensor::run_backward(&[loss], &leaves, false, false));
    all.iter().map(Tensor::detach).collect()
}

fn ours(weights: &[Tensor], factors: Factors) -> Vec<Tensor> {
    outcome(weights, |input, weights| {
        products(input, &weights.iter().collect::<Vec<_>>(), factors).expect("the operands fit")
    })
}

/// libtorch's, of the widened weights.
fn theirs(weights: &[Tensor]) -> Vec<Tensor> {
    outcome(weights, |input, weights| {
        weights.iter().map(|weight| input.linear::<&Tensor>(&weight.to_kind(Kind::Float), None)).collect()
    })
}

#[test]
fn products_of_one_input_and_all_their_gradients_are_those_of_libtorch() {
    // As they are stored, and as the transpose of what is stored.
    let stored = || [numbers(&[5, 7]), numbers(&[3, 7]) * 2.0, numbers(&[7, 4]).transpose(0, 1)];
    for (factors, limit) in FACTORS {
        for trained in [[true; 3], [false; 3], [true, false, true]] {
            let weights: Vec<Tensor> =
                stored().into_iter().zip(trained).map(|(weight, trained)| weight.set_requires_grad(trained)).collect();
            let (one, other) = (ours(&weights, factors), theirs(&weights));
            assert_eq!(one.len(), 4 + trained.iter().filter(|trained| **trained).count());
            for (place, (one, other)) in one.iter().zip(&other).enumerate() {
                assert_close(one, other, limit, &format!("{factors:?} {trained:?} {place}"));
            }
        }
        let narrow = stored().map(|weight| weight.to_kind(Kind::BFloat16));
        for (place, (one, other)) in ours(&narrow, factors).iter().zip(&theirs(&narrow)).enumerate() {
            assert_close(one, other, limit, &format!("{factors:?} of weights in bfloat16 {place}"));
        }
    }
}

#[test]
fn without_gradients_the_product_is_the_same() {
    let (input, weight) = (numbers(&[3, 7]), numbers(&[5, 7]).to_kind(Kind::BFloat16));
    for (factors, _) in FACTORS {
        let recorded = products(&input.copy().set_requires_grad(true), &[&weight], factors).unwrap().remove(0);
        let plain = products(&input, &[&weight], factors).unwrap().remove(0);
        assert!(recorded.requires_grad() && !plain.requires_grad());
        assert!(recorded.detach().equal(&plain));
    }
}

#[test]
fn operands_of_other_kinds_and_shapes_and_trained_weights_in_bf16_are_refused() {
    let (input, weight) = (numbers(&[3, 7]), numbers(&[5, 7]));
    for (weight, said) in [
        (weight.to_kind(Kind::Double), "Double"),
        (weight.view(-1), "matrix"),
        (numbers(&[5, 6]), "7 numbers for a weight of 6"),
        (weight.to_kind(Kind::BFloat16).set_requires_grad(true), "trained"),
    ] {
        let error = products(&input, &[&numbers(&[5, 7]), &weight], Factors::Whole).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = products(&input.to_kind(Kind::BFloat16), &[&weight], Factors::Narrow).unwrap_err().to_string();
    assert!(error.contains("float32"), "{error}");
}

#[test]
fn gradients_are_added_to_their_sums_and_leave_nothing_behind() {
    let leaves = [numbers(&[2, 3]), numbers(&[4]), numbers(&[1])].map(|leaf| leaf.set_requires_grad(true));
    let sums = [
        Tensor::ones([2, 3], (Kind::Float, Device::Cpu)),
        Tensor::zeros([4], (Kind::Float, Device::Cpu)),
        numbers(&[1]),
    ];
    let loss = || leaves[0].sum(Kind::Float) * 2.0 + leaves[1].square().sum(Kind::Float);
    for times in 1..=2 {
        add_gradients(&loss(), &leaves, &sums).unwrap();
        assert_close(
            &sums[0],
            &Tensor::full([2, 3], 1.0 + 2.0 * f64::from(times), (Kind::Float, Device::Cpu)),
            1e-6,
            "a sum",
        );
        assert_close(&sums[1], &(leaves[1].detach() * 2.0 * f64::from(times)), 1e-6, "another");
        assert!(sums[2].equal(&numbers(&[1])), "the loss does not depend on it");
        assert!(leaves.iter().all(|leaf| !leaf.grad().defined()));
    }
    let error = add_gradients(&numbers(&[1]), &leaves, &sums).unwrap_err().to_string();
    assert!(error.contains("grad"), "{error}");
    assert!(leaves.iter().all(|leaf| !leaf.grad().defined()));
}

#[test]
fn streams_are_nothing_on_a_cpu() {
    assert_eq!(streams::enter(Device::Cpu), Ok(()));
    assert_eq!(streams::synchronize(Device::Cpu), Ok(()));
}
