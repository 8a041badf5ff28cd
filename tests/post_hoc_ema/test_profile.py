"""The mathematics of power-function profiles: golden numbers, and what the formulas promise."""

import json
from fractions import Fraction

import numpy as np
import pytest
from golden_data import arrays, select, table
from scipy.integrate import quad

from edm2.post_hoc_ema import (
    SIGMA_REL_MAX,
    gamma_to_sigma_rel,
    power_function_beta,
    power_function_profile,
    power_function_response,
    power_function_step,
    profile_inner_product,
    reconstruction_error,
    sigma_rel_to_gamma,
    solve_coefficients,
)

SCALAR = 1e-12  # relative; the golden README's tolerance for scalars


def tables(golden, prefix):
    return {key: x.numpy() for key, x in select(arrays(golden, "phema/tables.safetensors"), prefix).items()}


def coefficient_sets(golden):
    """(name, what phema.json says of the set, its arrays)."""
    for name, facts in table(golden, "phema/phema.json")["coefficients"].items():
        yield name, facts, tables(golden, f"coef/{name}")


def problem(numbers):
    return [numbers[key] for key in ("in_nimg", "in_std", "out_nimg", "out_std")]


def evenly_spaced(n, sigma_rels):
    """Times and widths of n snapshots of each width, the last at time 1."""
    t, s = np.meshgrid(np.arange(1, n + 1) / n, sigma_rels)
    return t.ravel(), s.ravel()


def test_golden_scalars(golden):
    """Width of an exponent and back, β, and inner products, which are symmetric."""
    widths, exponents = tables(golden, "exp_to_std"), tables(golden, "std_to_exp")
    np.testing.assert_allclose(gamma_to_sigma_rel(widths["exp"]), widths["std"], rtol=SCALAR)
    np.testing.assert_allclose(sigma_rel_to_gamma(exponents["std"]), exponents["exp_exact"], rtol=SCALAR)
    betas = tables(golden, "beta")
    sigma_rel, t, dt = betas["std_tnext_tdelta"].T
    np.testing.assert_allclose(power_function_beta(sigma_rel, t, dt), betas["beta"], rtol=SCALAR)
    products = tables(golden, "corr")
    a, b = (products["a_ofs"], products["a_std"]), (products["b_ofs"], products["b_std"])
    np.testing.assert_allclose(profile_inner_product(*a, *b), products["value"], rtol=SCALAR)
    np.testing.assert_allclose(profile_inner_product(*b, *a), products["value"], rtol=SCALAR)


def test_golden_response(golden):
    numbers = tables(golden, "response")
    multi = power_function_response(numbers["multi/ofs"], numbers["multi/std"], len(numbers["multi/curve_axis0"]))
    np.testing.assert_allclose(multi, numbers["multi/curve_axis0"], rtol=SCALAR, atol=1e-15)
    singles = [key.removesuffix("/curve") for key in numbers if key.endswith("/curve")]
    assert singles
    for key in singles:
        t, sigma_rel, length = numbers[f"{key}/ofs_std_len"]
        curve = power_function_response(t, sigma_rel, int(length))
        np.testing.assert_allclose(curve, numbers[f"{key}/curve"], rtol=SCALAR, atol=1e-15)


def test_golden_coefficients(golden):
    for name, facts, numbers in coefficient_sets(golden):
        error = np.abs(solve_coefficients(*problem(numbers)) - numbers["coefs_exact"]).max()
        # the golden README: 100 x the rounding error that the condition number allows for
        assert error <= 1e-14 * facts["condition_number_2norm"] * facts["max_abs_coef"], name


def test_golden_forecast(golden):
    for name, facts, numbers in coefficient_sets(golden):
        forecast = reconstruction_error(*problem(numbers))
        bound = np.array(facts["sum_abs_coef"])
        rounding = 1e-14 * facts["condition_number_2norm"]  # as for the coefficients
        np.testing.assert_allclose(forecast.noise_bound, bound, rtol=rounding, err_msg=name)
        squared_error = np.array(facts["profile_l2_relative_error_of_fit"]) ** 2
        # a sum of terms up to bound², each rounded to 1e-16
        assert (np.abs(forecast.profile_error**2 - squared_error) <= 1e-14 * bound**2).all(), name


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.05, 0.1, 0.25, 0.288, 0.28867])
def test_exponent_is_the_root_to_twelve_digits_over_the_whole_range(sigma_rel):
    """Distance to the root of Eq. 126 by Newton's formula, in exact arithmetic; γ is 1e-4 at the last width."""
    g, r = Fraction(float(sigma_rel_to_gamma(sigma_rel))), Fraction(sigma_rel) ** -2
    value, slope = g**3 + 7 * g**2 + (16 - r) * g + (12 - r), 3 * g**2 + 14 * g + (16 - r)
    assert abs(value / slope) < SCALAR * g


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel):
    """Area 1, and the width it is named after, by numerical integration; outside of its time it is zero."""
    t = 40.0
    area, mean, square = (
        quad(lambda tau, k=k: tau**k * power_function_profile(tau, t, sigma_rel), 0, t, epsabs=0)[0] for k in range(3)
    )
    assert power_function_profile([-1.0, 0.0, t + 0.5, 99.0], t, sigma_rel).tolist() == [0, 0, 0, 0]
    assert area == pytest.approx(1, rel=1e-8)  # quad's own accuracy, as below
    assert np.sqrt(square - mean**2) / t == pytest.approx(sigma_rel, rel=1e-5)  # the difference costs digits


@pytest.mark.parametrize(
    ("t_a", "sigma_a", "t_b", "sigma_b"), [(3, 0.05, 3, 0.1), (2, 0.2, 5, 0.05), (5, 0.25, 4, 0.03)]
)
def test_inner_product_equals_numerical_integral(t_a, sigma_a, t_b, sigma_b):
    def product(tau):
        return power_function_profile(tau, t_a, sigma_a) * power_function_profile(tau, t_b, sigma_b)

    integral, _ = quad(product, 0, min(t_a, t_b), epsabs=0)
    assert profile_inner_product(t_a, sigma_a, t_b, sigma_b) == pytest.approx(integral, rel=1e-8)  # quad's own accuracy


def test_updates_factor_the_first_keeps_nothing_and_late_ones_keep_their_digits():
    """β(0 -> t) factors, so the update interval may be anything. At dt/t = 1e-12 the step is (γ + 1) dt/t to first
    order; 1 - β would be left with four digits."""
    sigma_rels = [0.02, 0.05, 0.1, 0.25]
    one_by_one = power_function_beta(sigma_rels, 900, 200) * power_function_beta(sigma_rels, 1000, 100)
    np.testing.assert_allclose(one_by_one, power_function_beta(sigma_rels, t=1000, dt=300), rtol=1e-13)
    with np.errstate(all="raise"):  # and no warning about the logarithm of zero reaches the user
        assert power_function_beta([0.05, 0.1], t=64, dt=64).tolist() == [0, 0]
        assert power_function_step([0.05, 0.1], t=64, dt=64).tolist() == [1, 1]
    gamma = sigma_rel_to_gamma(0.05)
    assert json.loads(json.dumps(gamma)) == gamma  # scalars in, scalars out, so that reports can hold them
    assert power_function_step(0.05, t=1e12, dt=1) == pytest.approx((gamma + 1) * 1e-12, rel=1e-10, abs=0)


def test_coefficients_of_a_tracked_profile_pick_that_tracker():
    t, s = evenly_spaced(8, [0.05, 0.10])
    x = solve_coefficients(t, s, t, s)
    np.testing.assert_allclose(x, np.eye(16), atol=1e-10)  # condition number 1e3
    forecast = reconstruction_error(t, s, t, s)
    assert forecast.profile_error.max() < 1e-7  # the documented floor
    np.testing.assert_allclose(forecast.noise_gain, 1, rtol=1e-10)


def test_coefficients_sum_to_one_scale_with_no_unit_of_time_and_have_times_of_their_own():
    t, s = evenly_spaced(4, [0.05, 0.10])
    x = solve_coefficients(t, s, [0.75, 1.0, 1.0], [0.07, 0.03, 0.2])
    assert x.shape == (8, 3)
    np.testing.assert_allclose(x.sum(axis=0), 1, rtol=1e-13)
    np.testing.assert_allclose(x[:, :1], solve_coefficients(t, s, 0.75, 0.07), atol=1e-13)
    np.testing.assert_allclose(x[:, 1:], solve_coefficients(t * 2**30, s, 2**30, [0.03, 0.2]), rtol=1e-10)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
def test_forecast_equals_numerical_integral_and_noise_gain_the_growth_of_independent_errors(sigma_rel):
    """The error of the profile, integrated between snapshots, where it is smooth."""
    t, s = evenly_spaced(8, [0.05, 0.10])
    x, forecast = solve_coefficients(t, s, 1, sigma_rel)[:, 0], reconstruction_error(t, s, 1, sigma_rel)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    tau = ((np.arange(8)[:, None] + (nodes + 1) / 2) / 8).ravel()
    weights = np.tile(weights / 16, 8)
    wanted = power_function_profile(tau, 1, sigma_rel)
    error = x @ power_function_profile(tau, t[:, None], s[:, None]) - wanted
    expected = np.sqrt((weights @ error**2) / (weights @ wanted**2))
    assert forecast.profile_error == pytest.approx(expected, rel=1e-6)
    noise = np.random.default_rng(0).standard_normal((16, 100_000))
    assert forecast.noise_gain.item() == pytest.approx((x @ noise).std(), rel=0.01)  # 4x the sampling error
    assert np.abs(x @ noise).max() < forecast.noise_bound.item() * np.abs(noise).max()


@pytest.mark.parametrize(("widths", "order"), [([0.05, 0.10], 2), ([0.10], 1)])
def test_error_falls_with_the_number_of_snapshots(widths, order):
    """Appendix C: the squared error is O(1/n⁴) with two profiles, O(1/n²) with one."""
    errors = [reconstruction_error(*evenly_spaced(n, widths), 1, 0.13).profile_error.item() for n in (16, 32, 64)]
    observed = -np.diff(np.log2(errors))
    np.testing.assert_allclose(observed, order, atol=0.05)  # higher orders in 1/n remain


@pytest.mark.parametrize("bad", [0, -0.1, SIGMA_REL_MAX, 0.3, float("nan")])
def test_impossible_widths_are_refused_by_value(bad):
    for call in (
        lambda: sigma_rel_to_gamma([0.1, bad]),
        lambda: power_function_beta(bad, 2, 1),
        lambda: profile_inner_product(1, 0.1, 1, bad),
        lambda: solve_coefficients([1, 2], [0.1, 0.1], 2, bad),
    ):
        with pytest.raises(ValueError, match=rf"sigma_rel={float(bad)} must be") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_impossible_times_and_exponents_are_refused():
    for dt in (0, -1, 3):
        with pytest.raises(ValueError, match=f"dt={dt}"):
            power_function_beta(0.1, t=2, dt=dt)
    with pytest.raises(ValueError, match="time 0"):
        solve_coefficients([0, 1], [0.1, 0.1], 1, 0.1)
    with pytest.raises(ValueError, match="gamma=-1"):
        gamma_to_sigma_rel(-1)
    with pytest.raises(ValueError, match=r"two averages of 64 images at sigma_rel=0\.1"):
        solve_coefficients([64, 64, 64], [0.1, 0.05, 0.1], 64, 0.1)
