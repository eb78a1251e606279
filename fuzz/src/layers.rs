//! Layers: networks of any configuration on matrices of any shape, strides, offset and values, on any instruction set, threads
//! and block sizes, forward and backward, against the sequential oracle, bit for bit, with canaries around every output. Shapes
//! that do not fit are refused, and outputs then untouched.

use crate::common::{
    Grid, Map, MapGrad, Stage, Threads, assert_same, assert_same_grads, context, existing, gradients_of, isas,
    oracle_backward, oracle_forward, values_of, zero_grads,
};
use crate::input::{Extent, Phi, Place, Size, Values};
use arbitrary::Arbitrary;
use resblock::{
    Block, Blocking, Context, Error, GradMode, GradientFlow, Gradients, Layer, Linear, MatMut, MatRef, Pass, Stack,
    Workspace,
};

/// Calls one after the other in the same workspace, which must not matter.
#[derive(Debug, Arbitrary)]
pub struct Case {
    first: Call,
    others: Vec<Call>,
}

#[derive(Debug, Arbitrary)]
struct Call {
    net: Net,
    phi: Phi,
    skip: bool,
    biases: (bool, bool),
    rows: Size,
    scale: u8,
    values: Values,
    places: Places,
    how: How,
    /// The batch is cut here into two micro-batches.
    cut: Option<u8>,
    accumulate: bool,
    probe: bool,
    /// A bit for each gradient that is not wanted.
    declined: u8,
    fault: Option<Fault>,
    /// A batch of any number of rows, for layers without outputs.
    batch: Option<Extent>,
}

#[derive(Debug, Arbitrary)]
enum Net {
    Linear { inputs: Size, outputs: Size, outside: bool },
    Block { width: Size, hidden: Size },
    Blocks { width: Size, hidden: Size, more: u8 },
    Stack { inputs: Size, width: Size, hidden: Size, outputs: Size, blocks: u8 },
}

#[derive(Debug, Arbitrary)]
struct Places {
    x: Place,
    y: Place,
    skip: Place,
    dy: Place,
    dx: Option<Place>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct How {
    isa: u8,
    threads: u8,
    blocking: Option<(u8, u8, u8)>,
}

impl How {
    fn context(self) -> Context {
        let sets = isas();
        let blocking = match self.blocking {
            None => Blocking::default(),
            Some((rows, hidden, depth)) => {
                let size = |byte: u8| if byte == 255 { usize::MAX } else { usize::from(byte % 80) };
                Blocking { rows: size(rows), hidden: size(hidden), depth: size(depth) }
            }
        };
        context(sets[usize::from(self.isa) % sets.len()]).with_blocking(blocking)
    }

    fn threads(self) -> Threads {
        match self.threads % 8 {
            n @ 1..=3 => Threads::Rayon(n.into()),
            _ => Threads::Seq,
        }
    }
}

/// An operand with a row or a column too many, or gradients of another network.
#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Fault {
    X,
    Y { wide: bool },
    Skip { wide: bool },
    Dy { wide: bool },
    Dx { wide: bool },
    Gradients,
}

pub fn run(case: &Case) {
    let mut ws = Workspace::new();
    for call in std::iter::once(&case.first).chain(case.others.iter().take(2)) {
        let threads = call.how.threads();
        threads.run(call.how.context(), |ctx| call.run(&ctx, &mut ws));
    }
}

impl Call {
    /// Widths as asked for, or so large that threads share rows (scale 0) or columns (scale 1).
    fn width(&self, size: Size) -> usize {
        match self.scale {
            0 => 70 + size.0,
            1 => 350 + size.0,
            _ => size.0,
        }
    }

    fn rows(&self) -> usize {
        match self.scale {
            0 => 64 + self.rows.0,
            1 => self.rows.0 % 10,
            _ => self.rows.0,
        }
    }

    fn run(&self, ctx: &Context, ws: &mut Workspace) {
        let mut stream = 100;
        let mut map = |inputs: usize, outputs: usize, bias: bool| {
            stream += 2;
            let b = bias.then(|| self.values.fill(stream + 1, outputs));
            Map { inputs, outputs, w: self.values.fill(stream, inputs * outputs), b }
        };
        let (phi, (bias1, bias2)) = (self.phi.into(), self.biases);
        match self.net {
            Net::Linear { inputs, outputs, outside } => {
                let (inputs, outputs) = (self.width(inputs), self.width(outputs));
                let skip = self.skip && !outside;
                let stage = Stage::Linear { map: map(inputs, if skip { inputs } else { outputs }, bias1), phi, skip };
                self.check(ctx, ws, &stage.build_linear(), &[stage], outside);
            }
            Net::Block { width, hidden } => {
                let (d, h) = (self.width(width), self.width(hidden));
                let stage = Stage::Block { first: map(d, h, bias1), second: map(h, d, bias2), phi, skip: self.skip };
                self.check(ctx, ws, &stage.build_block(), &[stage], false);
            }
            Net::Blocks { width, hidden, more } => {
                let (d, h) = (self.width(width), self.width(hidden));
                let mut block =
                    || Stage::Block { first: map(d, h, bias1), second: map(h, d, bias2), phi, skip: self.skip };
                let stages: Vec<Stage> = (0..1 + more % 3).map(|_| block()).collect();
                let net = Stack::from_blocks(stages.iter().map(Stage::build_block).collect()).expect("a stack");
                self.check(ctx, ws, &net, &stages, false);
            }
            Net::Stack { inputs, width, hidden, outputs, blocks } => {
                let (d, h) = (self.width(width), self.width(hidden));
                let phi_out = if self.skip { resblock::Activation::Identity } else { phi };
                let mut stages = vec![Stage::Linear { map: map(inputs.0, d, bias1), phi: phi_out, skip: false }];
                stages.extend((0..blocks % 3).map(|_| {
                    let (first, second) = (map(d, h, bias1), map(h, d, bias2));
                    Stage::Block { first, second, phi, skip: self.skip }
                }));
                stages.push(Stage::Linear { map: map(d, outputs.0, bias2), phi: phi_out, skip: false });
                self.check(ctx, ws, &crate::common::build_stack(&stages), &stages, false);
            }
        }
    }

    fn check<L: Recorded>(&self, ctx: &Context, ws: &mut Workspace, layer: &L, stages: &[Stage], outside: bool) {
        let (n, inputs, outputs) = (self.rows(), layer.inputs(), layer.outputs());
        let x = self.input(self.places.x, 0, n, inputs);
        let dy = self.input(self.places.dy, 1, n, outputs);
        let skip = outside.then(|| self.input(self.places.skip, 2, n, outputs));
        if let Some(fault) = self.fault {
            self.refused(ctx, ws, layer, fault, (&x, skip.as_ref(), &dy));
        }
        if let (Some(Extent(rows)), 0) = (self.batch, outputs) {
            boundless(ctx, ws, layer, rows, &self.values);
        }

        let values = |grid: &Grid| grid.values();
        let outs = oracle_forward::<f32>(stages, n, &values(&x), skip.as_ref().map(values).as_deref());
        let y_want = &outs.last().expect("a stage").y;
        let mut y = self.output(self.places.y, n, outputs);
        layer.infer_any(ctx, ws, x.view(), skip.as_ref().map(Grid::view), y.view_mut()).expect("infer");
        y.assert_canaries("y of infer");
        assert_same("y of infer", &y.values(), y_want);

        let before = self.gradients(stages);
        let mut grads = gradients_of(layer, &before);
        self.decline(layer, &mut grads);
        let mut want = if self.accumulate { before } else { zero_grads(stages) };
        let below = oracle_backward(stages, n, &values(&x), &outs, &values(&dy), &mut want);

        let cut = self.cut.map_or(n, |at| usize::from(at).min(n));
        let mut mode = if self.accumulate { GradMode::Accumulate } else { GradMode::Overwrite };
        for rows in [0..cut, cut..n] {
            if rows.is_empty() && n > 0 {
                continue;
            }
            let part = |grid: &Grid, place: Place| {
                let values = grid.values();
                let cols = values.len() / n.max(1);
                let (place, count) = (Grid::with_margin(place.output(), rows.len(), cols, place.margin()), cols);
                place.filled(&values[rows.start * count..rows.end * count])
            };
            let whole = rows.len() == n;
            let pieces = (!whole).then(|| (part(&x, self.places.x), part(&dy, self.places.dy)));
            let (x, dy) = pieces.as_ref().map_or((&x, &dy), |(x, dy)| (x, dy));
            let piece = skip.as_ref().filter(|_| !whole).map(|skip| part(skip, self.places.skip));
            let skip = piece.as_ref().or(skip.as_ref());
            let mut y = self.output(self.places.y, rows.len(), outputs);
            let pass = layer.forward_any(ctx, ws, x.view(), skip.map(Grid::view), y.view_mut()).expect("forward");
            let mut dx = self.places.dx.map(|place| self.output(place, rows.len(), inputs));
            let dx_view = dx.as_mut().map(Grid::view_mut);
            if self.probe {
                let mut flow = GradientFlow::new();
                pass.backward_probed(dy.view(), dx_view, &mut grads, mode, &mut flow).expect("backward");
                if whole {
                    assert_norms(flow.norms(), &below, &dy.values());
                }
            } else {
                pass.backward(dy.view(), dx_view, &mut grads, mode).expect("backward");
            }
            mode = GradMode::Accumulate;
            y.assert_canaries("y of forward");
            assert_same("y of forward", &y.values(), &y_want[rows.start * outputs..rows.end * outputs]);
            if let Some(dx) = dx {
                dx.assert_canaries("dx");
                assert_same("dx", &dx.values(), &below[0][rows.start * inputs..rows.end * inputs]);
            }
        }
        let mut want = existing(layer, &want);
        for (i, grad) in want.iter_mut().enumerate() {
            if self.declines(2 * i) {
                grad.dw.clear();
            }
            if self.declines(2 * i + 1) {
                grad.db.clear();
            }
        }
        assert_same_grads("gradients", &values_of(layer, &grads), &want);
    }

    fn input(&self, place: Place, stream: u64, rows: usize, cols: usize) -> Grid {
        Grid::with_margin(place.input(), rows, cols, place.margin()).filled(&self.values.fill(stream, rows * cols))
    }

    fn output(&self, place: Place, rows: usize, cols: usize) -> Grid {
        Grid::with_margin(place.output(), rows, cols, place.margin())
    }

    /// What the gradients hold before.
    fn gradients(&self, stages: &[Stage]) -> Vec<MapGrad<f32>> {
        let maps = stages.iter().flat_map(Stage::maps);
        let fill = |stream, len| self.values.fill(stream, len);
        maps.map(|m| MapGrad { dw: fill(3, m.inputs * m.outputs), db: fill(4, m.outputs) }).collect()
    }

    fn declines(&self, index: usize) -> bool {
        index < 8 && self.declined & (1 << index) != 0
    }

    fn decline<L: Layer>(&self, layer: &L, grads: &mut Gradients) {
        for i in 0..layer.affine_count() {
            let name = layer.affine_name(i);
            assert!(!self.declines(2 * i) || grads.decline(|other| other == name.weight()) == 1);
            assert!(
                !self.declines(2 * i + 1)
                    || grads.decline(|other| other == name.bias())
                        == usize::from(layer.affine(i).is_some_and(|map| map.bias().is_some()))
            );
        }
    }

    /// The call with a fault in it is an error, and touches nothing.
    fn refused<L: Recorded>(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        layer: &L,
        fault: Fault,
        (x, skip, dy): (&Grid, Option<&Grid>, &Grid),
    ) {
        let (n, inputs, outputs) = (self.rows(), layer.inputs(), layer.outputs());
        let more = |(rows, cols): (usize, usize), wide: bool| if wide { (rows, cols + 1) } else { (rows + 1, cols) };
        let grid = |place: Place, (rows, cols)| self.input(place, 9, rows, cols);
        let wrong_x = grid(self.places.x, more((n, inputs), true));
        let shape = |operand, expected, found| Error::Shape { operand, expected, found };

        let (mut x, mut y_shape, mut skip, mut error) = (x, (n, outputs), skip, None);
        let wrong_skip;
        match fault {
            Fault::X => {
                x = &wrong_x;
                error = Some(shape("x", (n, inputs), (n, inputs + 1)));
            }
            Fault::Y { wide } => {
                y_shape = more(y_shape, wide);
                error = Some(shape("y", (n, outputs), y_shape));
            }
            Fault::Skip { wide } if skip.is_some() => {
                let found = more((n, outputs), wide);
                wrong_skip = grid(self.places.skip, found);
                skip = Some(&wrong_skip);
                error = Some(shape("skip", (n, outputs), found));
            }
            _ => {}
        }
        let mut y = self.output(self.places.y, y_shape.0, y_shape.1);
        if let Some(error) = error {
            let skip = skip.map(Grid::view);
            assert_eq!(layer.infer_any(ctx, ws, x.view(), skip, y.view_mut()), Err(error.clone()));
            assert_eq!(layer.forward_any(ctx, ws, x.view(), skip, y.view_mut()).err(), Some(error));
            return y.assert_untouched("y");
        }

        let pass = layer.forward_any(ctx, ws, x.view(), skip.map(Grid::view), y.view_mut()).expect("forward");
        let (mut dx_shape, mut dy, wrong_dy) = ((n, inputs), dy, grid(self.places.dy, (n + 1, outputs)));
        let wide_dy = grid(self.places.dy, (n, outputs + 1));
        let mut grads = Gradients::new(layer).expect("gradients");
        let error = match fault {
            Fault::Dy { wide } => {
                dy = if wide { &wide_dy } else { &wrong_dy };
                shape("dy", (n, outputs), more((n, outputs), wide))
            }
            Fault::Dx { wide } => {
                dx_shape = more(dx_shape, wide);
                shape("dx", (n, inputs), dx_shape)
            }
            Fault::Gradients => {
                let other = Map { inputs: inputs + 1, outputs, w: vec![0.0; (inputs + 1) * outputs], b: None };
                let other = Linear::new(other.affine(), resblock::Activation::Relu);
                grads = Gradients::new(&other).expect("gradients");
                let tensor = layer.parameters().next().expect("a parameter").to_string();
                Error::Mismatch { operand: "grads", tensor }
            }
            _ => return,
        };
        let before = grads.clone();
        let mut dx = self.output(self.places.x, dx_shape.0, dx_shape.1);
        let (result, mut flow) = (Some(dx.view_mut()), GradientFlow::new());
        let result = pass.backward_probed(dy.view(), result, &mut grads, GradMode::Overwrite, &mut flow);
        assert_eq!(result, Err(error));
        dx.assert_untouched("dx");
        assert_eq!(flow, GradientFlow::new());
        assert_eq!((grads.norm(&ctx), grads.iter().count()), (0.0, before.iter().count()), "gradients were touched");
    }
}

/// Rows of stride 0, perhaps more than could ever be counted, and outputs without width: nothing to compute, and to record only
/// what memory holds.
fn boundless<L: Layer>(ctx: &Context, ws: &mut Workspace, layer: &L, n: usize, values: &Values) {
    let row = values.fill(0, layer.inputs());
    let x = MatRef::with_strides(&row, n, layer.inputs(), 0, 1).expect("a row, repeated");
    let y = || MatMut::with_strides(&mut [], n, 0, 0, 1).expect("an empty matrix");
    let addressable = n <= isize::MAX as usize / 64;
    match layer.infer(ctx, ws, x, y()) {
        Ok(()) => assert!(addressable, "{n} rows"),
        Err(Error::Overflow { operand: "batch", rows, .. }) => assert!(!addressable && rows == n, "{n} rows"),
        Err(error) => panic!("{error}"),
    }
    if (1000..1 << 50).contains(&n) {
        return; // Memory might really hold that.
    }
    match layer.forward(ctx, ws, x, y()) {
        Ok(pass) => {
            let dy = MatRef::with_strides(&[], n, 0, 0, 1).expect("an empty matrix");
            let (mut grads, mut flow) = (Gradients::new(layer).expect("gradients"), GradientFlow::new());
            pass.backward_probed(dy, None, &mut grads, GradMode::Overwrite, &mut flow).expect("backward");
        }
        Err(Error::Overflow { .. } | Error::Memory { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// ‖∂L/∂y_t‖ is that of the oracle's gradients, up to the order of an f64 sum.
fn assert_norms(norms: &[f64], below: &[Vec<f32>], dy: &[f32]) {
    assert_eq!(norms.len(), below.len());
    let entering = below.iter().skip(1).map(|g| &g[..]).chain(std::iter::once(dy));
    for (t, (&norm, gradient)) in norms.iter().zip(entering).enumerate() {
        let want = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let near = (norm - want).abs() <= 1e-9 * want || norm == want || (norm.is_nan() && want.is_nan());
        assert!(near, "norm {t}: {norm:e}, expected {want:e}");
    }
}

/// A layer that takes a skip from outside, if it is a linear one.
trait Recorded: Layer {
    fn infer_any(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        _skip: Option<MatRef<'_>>,
        y: MatMut<'_>,
    ) -> Result<(), Error> {
        self.infer(ctx, ws, x, y)
    }

    fn forward_any<'a>(
        &'a self,
        ctx: &Context,
        ws: &'a mut Workspace,
        x: MatRef<'_>,
        _skip: Option<MatRef<'_>>,
        y: MatMut<'_>,
    ) -> Result<Pass<'a, Self>, Error> {
        self.forward(ctx, ws, x, y)
    }
}

impl Recorded for Block {}
impl Recorded for Stack {}
impl Recorded for Linear {
    fn infer_any(
        &self,
        ctx: &Context,
        ws: &mut Workspace,
        x: MatRef<'_>,
        skip: Option<MatRef<'_>>,
        y: MatMut<'_>,
    ) -> Result<(), Error> {
        match skip {
            Some(skip) => self.infer_with_skip(ctx, ws, x, skip, y),
            None => self.infer(ctx, ws, x, y),
        }
    }

    fn forward_any<'a>(
        &'a self,
        ctx: &Context,
        ws: &'a mut Workspace,
        x: MatRef<'_>,
        skip: Option<MatRef<'_>>,
        y: MatMut<'_>,
    ) -> Result<Pass<'a, Self>, Error> {
        match skip {
            Some(skip) => self.forward_with_skip(ctx, ws, x, skip, y),
            None => self.forward(ctx, ws, x, y),
        }
    }
}
