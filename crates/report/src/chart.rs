//! The canvas of every chart: axes with their labels and ticks, and the marks that go on it.
//!
//! Plotters sets whole pixels, so charts are drawn [`SCALE`] times as large as they are shown, which
//! keeps thin lines smooth; the page's style sets the typeface and, by the colours below, the dark
//! theme.

use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::html::number;

/// Colours that keep apart for colour-blind readers (Okabe and Ito's, with Tol's purple), on white and on near-black.
pub(crate) mod colour {
    use plotters::style::RGBColor;

    pub(crate) const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
    pub(crate) const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
    pub(crate) const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
    pub(crate) const PURPLE: RGBColor = RGBColor(0xaa, 0x44, 0x99);
    pub(crate) const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
    pub(crate) const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
    /// Limit lines; the style sheet swaps it in the dark theme.
    pub(crate) const RULE: RGBColor = RGBColor(0x44, 0x4a, 0x52);
    /// Grid and axes; the style sheet swaps it in the dark theme.
    pub(crate) const GRID: RGBColor = RGBColor(0xe4, 0xe7, 0xeb);
    /// Ticks' words; the style sheet sets them.
    pub(crate) const INK: RGBColor = RGBColor(0x5b, 0x63, 0x6d);

    /// One for each series whose meaning has no colour of its own, in turn.
    pub(crate) const CYCLE: [RGBColor; 6] = [BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY];
}

const SCALE: u32 = 4;
const WIDTH: u32 = 520;
const HEIGHT: u32 = 270;
/// At most so many ticks on an axis.
const X_TICKS: usize = 7;
const Y_TICKS: usize = 6;
/// Plotters divides a text's size by this on its way into SVG.
const TEXT_SHRINKAGE: f64 = 1.24;
/// What a chart can place; anything beyond is a broken run, and told in words and tables.
const LARGEST_VALUE: f64 = 1e12;
const DRAWN: &str = "an SVG in memory takes all that is drawn";

/// An axis: what it shows, in which unit, from where to where.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) range: Range<f64>,
    /// Whether only whole numbers have a meaning on it.
    pub(crate) whole: bool,
}

impl Axis {
    /// An axis that spans the values, with a little air at both ends.
    pub(crate) fn around(label: &str, values: impl IntoIterator<Item = f64>) -> Axis {
        let (low, high) = extent(values);
        let air = 0.06 * (high - low);
        Axis { label: label.to_owned(), range: low - air..high + air, whole: false }
    }

    /// An axis from the first to the last of the steps.
    pub(crate) fn steps(label: &str, steps: impl IntoIterator<Item = f64>) -> Axis {
        let (low, high) = extent(steps);
        Axis { label: label.to_owned(), range: low..high, whole: true }
    }

    /// How to write the ticks: with the decimals that the closest two of them need, and no more.
    fn ticks(&self, count: usize) -> impl Fn(&f64) -> String {
        let ticks = RangedCoordf64::from(self.range.clone()).key_points(count);
        let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(1.0, f64::min);
        let largest = ticks.iter().fold(0.0_f64, |largest, tick| largest.max(tick.abs()));
        let is_whole = |value: f64| (value - value.round()).abs() < 1e-6 * value.abs();
        let needed = |&decimals: &i32| self.whole || is_whole(step * 10_f64.powi(decimals));
        let decimals = (0..5).find(needed);
        let whole = self.whole;
        move |&value| match decimals {
            _ if whole && (value - value.round()).abs() > 1e-6 => String::new(),
            Some(decimals) if largest < 1e6 => number(value, decimals as usize),
            _ => format!("{value:.1e}"),
        }
    }
}

/// Whether a value has a place in a chart.
pub(crate) fn is_drawable(value: f64) -> bool {
    value.abs() < LARGEST_VALUE
}

/// The least and the greatest drawable value, a little apart even if there is but one, or none.
fn extent(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .into_iter()
        .filter(|&value| is_drawable(value))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let least_span = (1e-6 * low.abs().max(high.abs())).max(1e-9);
    if high - low > least_span {
        return (low, high);
    }
    let air = (0.1 * low.abs()).max(0.5);
    (low - air, high + air)
}

/// A chart with its axes drawn, ready for marks.
pub(crate) struct Plot<'a, 'b> {
    context: ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    x: Axis,
    y: Axis,
}

/// Draws the axes and then, over the grid, whatever `paint` adds. Gives an `<svg>` element.
pub(crate) fn draw(x: &Axis, y: &Axis, paint: impl FnOnce(&mut Plot<'_, '_>)) -> String {
    let mut svg = String::new();
    {
        let size = (WIDTH * SCALE, HEIGHT * SCALE);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut context = ChartBuilder::on(&area)
            .margin_top(8 * SCALE)
            .margin_right(10 * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(58 * SCALE)
            .build_cartesian_2d(x.range.clone(), y.range.clone())
            .expect(DRAWN);
        context
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(colour::GRID.stroke_width(SCALE))
            .axis_style(colour::GRID.stroke_width(SCALE))
            .set_all_tick_mark_size(4 * SCALE)
            .x_labels(X_TICKS)
            .y_labels(Y_TICKS)
            .x_label_formatter(&x.ticks(X_TICKS))
            .y_label_formatter(&y.ticks(Y_TICKS))
            .label_style(text(11.5))
            .axis_desc_style(text(12.0))
            .x_desc(x.label.as_str())
            .y_desc(y.label.as_str())
            .draw()
            .expect(DRAWN);
        let mut plot = Plot { context, x: x.clone(), y: y.clone() };
        paint(&mut plot);
        area.present().expect(DRAWN);
    }
    svg
}

fn text(size: f64) -> TextStyle<'static> {
    let size = size * f64::from(SCALE) * TEXT_SHRINKAGE;
    ("sans-serif", size).into_text_style(&(WIDTH * SCALE, HEIGHT * SCALE)).color(&colour::INK)
}

impl Plot<'_, '_> {
    /// A line through the points.
    pub(crate) fn line(&mut self, points: &[(f64, f64)], colour: RGBColor) {
        self.path(points, colour.stroke_width(2 * SCALE));
    }

    /// A faint, thin line, for what lies behind another.
    pub(crate) fn faint_line(&mut self, points: &[(f64, f64)], colour: RGBColor) {
        self.path(points, colour.mix(0.28).stroke_width(SCALE));
    }

    fn path(&mut self, points: &[(f64, f64)], style: ShapeStyle) {
        let series = LineSeries::new(points.iter().copied(), style);
        self.context.draw_series(series).expect(DRAWN);
    }

    /// A dashed line across the chart at this height.
    pub(crate) fn horizontal_limit(&mut self, y: f64) {
        self.dashed([(self.x.range.start, y), (self.x.range.end, y)]);
    }

    /// A dashed line up the chart at this place.
    pub(crate) fn vertical_limit(&mut self, x: f64) {
        self.dashed([(x, self.y.range.start), (x, self.y.range.end)]);
    }

    fn dashed(&mut self, ends: [(f64, f64); 2]) {
        let style = colour::RULE.stroke_width(3 * SCALE / 2);
        let series = DashedLineSeries::new(ends, 6 * SCALE, 4 * SCALE, style);
        self.context.draw_series(series).expect(DRAWN);
    }

    /// A dashed line through the points.
    pub(crate) fn dashes(&mut self, points: &[(f64, f64)], colour: RGBColor) {
        let style = colour.stroke_width(3 * SCALE / 2);
        let series = DashedLineSeries::new(points.iter().copied(), 6 * SCALE, 4 * SCALE, style);
        self.context.draw_series(series).expect(DRAWN);
    }

    /// Names in their colours, one below the other in the lower right corner.
    pub(crate) fn legend(&mut self, names: &[(&str, RGBColor)]) {
        let (width, height) = (self.x.range.end - self.x.range.start, self.y.range.end - self.y.range.start);
        let words = names.iter().rev().enumerate().map(|(row, (name, colour))| {
            let place = (self.x.range.end - 0.015 * width, self.y.range.start + (0.03 + 0.075 * row as f64) * height);
            Text::new((*name).to_owned(), place, text(11.5).color(colour).pos(Pos::new(HPos::Right, VPos::Bottom)))
        });
        self.context.draw_series(words.collect::<Vec<_>>()).expect(DRAWN);
    }

    /// Round marks.
    pub(crate) fn dots(&mut self, points: &[(f64, f64)], colour: RGBColor) {
        let radius = 5 * SCALE / 2;
        let dot = |&point: &(f64, f64)| Circle::new(point, radius, colour.mix(0.6).filled());
        self.context.draw_series(points.iter().map(dot)).expect(DRAWN);
    }

    /// Three-cornered marks.
    pub(crate) fn triangles(&mut self, points: &[(f64, f64)], colour: RGBColor) {
        let size = 7 * SCALE / 2;
        let mark = |&point: &(f64, f64)| TriangleMarker::new(point, size, colour.mix(0.6).filled());
        self.context.draw_series(points.iter().map(mark)).expect(DRAWN);
    }

    /// A bar from the floor of the chart to `height`.
    pub(crate) fn bar(&mut self, sides: Range<f64>, height: f64, colour: RGBColor) {
        let mut bar =
            Rectangle::new([(sides.start, self.y.range.start), (sides.end, height)], colour.mix(0.85).filled());
        bar.set_margin(0, 0, SCALE / 2, SCALE / 2);
        self.context.draw_series([bar]).expect(DRAWN);
    }

    /// Tints the part of the chart to the right of `x`.
    pub(crate) fn shade_right_of(&mut self, x: f64, colour: RGBColor) {
        let start = x.max(self.x.range.start);
        if start < self.x.range.end {
            let corners = [(start, self.y.range.start), (self.x.range.end, self.y.range.end)];
            let shade = Rectangle::new(corners, colour.mix(0.07).filled());
            self.context.draw_series([shade]).expect(DRAWN);
        }
    }

    /// Words in the upper left and the upper right corner.
    pub(crate) fn corner_words(&mut self, left: &str, right: &str) {
        let air = 0.015 * (self.x.range.end - self.x.range.start);
        let top = self.y.range.end - 0.03 * (self.y.range.end - self.y.range.start);
        let at = |words: &str, x: f64, side: HPos| {
            Text::new(words.to_owned(), (x, top), text(11.5).pos(Pos::new(side, VPos::Top)))
        };
        let words = [at(left, self.x.range.start + air, HPos::Left), at(right, self.x.range.end - air, HPos::Right)];
        self.context.draw_series(words).expect(DRAWN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_around_one_value_or_none_or_a_broken_one_still_has_a_length() {
        for values in [vec![], vec![3.0], vec![0.0, 0.0], vec![f64::NAN, f64::INFINITY, 1e300]] {
            let axis = Axis::around("cost", values);
            assert!(axis.range.end - axis.range.start > 0.1, "{axis:?}");
        }
    }

    #[test]
    fn ticks_have_the_decimals_that_they_need() {
        let tick = |low, high, value| Axis::around("", [low, high]).ticks(6)(&value);
        assert_eq!(tick(0.0, 1.0, 0.2), "0.2");
        assert_eq!(tick(0.05, 0.42, 0.4), "0.4");
        assert_eq!(tick(-60.0, 40.0, -20.0), "−20");
        assert_eq!(tick(0.0, 0.01, 0.004), "0.004");
        assert_eq!(tick(0.0, 3e-7, 1e-7), "1.0e-7");
        assert_eq!(tick(0.0, 5e9, 1e9), "1.0e9");
    }

    #[test]
    fn steps_have_ticks_at_whole_numbers_only() {
        let tick = |value| Axis::steps("", [0.0, 2.0]).ticks(7)(&value);
        assert_eq!([tick(0.5), tick(1.0)], ["", "1"]);
    }

    #[test]
    fn a_chart_of_extreme_numbers_is_drawn_with_finite_ones() {
        let x = Axis::steps("update", [1.0]);
        let y = Axis::around("loss", [1e-300, 1e11]);
        let svg = draw(&x, &y, |plot| {
            plot.line(&[(1.0, 1e-300), (1.0, 1e11)], colour::BLUE);
            plot.horizontal_limit(0.0);
        });
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
