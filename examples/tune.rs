#![allow(missing_docs, reason = "scratch")]
use resblock::*;
use std::time::{Duration, Instant};
fn main() {
    let isa: Isa = std::env::args().nth(1).unwrap().parse().unwrap();
    let base = Context::new().unwrap().with_isa(isa).unwrap();
    let v: Vec<usize> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
    let (n, d, h) = (v[0], v[1], v[2]);
    let (rs, hs): (Vec<usize>, Vec<usize>) = (vec![56, 84, 112, 126, 128, 168, 256], vec![256, 512, 1024, 4096]);
    let mut cands = vec![];
    for &r in &rs {
        for &hc in &hs {
            for &k in &[256usize, 512, 4096] {
                if (r > n && r != 112) || (hc > h && hc != 4096) || (k > d.max(h) && k != 4096) {
                    continue;
                }
                cands.push((f64::MAX, f64::MAX, r, hc, k));
            }
        }
    }
    let block = Block::residual(d, h, Activation::Relu, &mut Init::he(1)).unwrap();
    let x: Vec<f32> = (0..n * d).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect();
    let (mut y, mut dx) = (vec![0.0; n * d], vec![0.0; n * d]);
    let mut ws = Workspace::new();
    let mut g = Gradients::new(&block).unwrap();
    let mut pk = 0f64;
    for _ in 0..6 {
        pk = pk.max(fma_peak(&base, Duration::from_millis(40)).gflops);
        for c in &mut cands {
            let ctx = base.with_blocking(Blocking { rows: c.2, hidden: c.3, depth: c.4 });
            let b = Instant::now();
            while b.elapsed().as_secs_f64() < 0.02 {
                let i = Instant::now();
                block.infer(&ctx, &mut ws, MatRef::new(&x, n, d).unwrap(), MatMut::new(&mut y, n, d).unwrap()).unwrap();
                c.0 = c.0.min(i.elapsed().as_secs_f64());
                let i = Instant::now();
                let pass = block
                    .forward(&ctx, &mut ws, MatRef::new(&x, n, d).unwrap(), MatMut::new(&mut y, n, d).unwrap())
                    .unwrap();
                pass.backward(
                    MatRef::new(&x, n, d).unwrap(),
                    Some(MatMut::new(&mut dx, n, d).unwrap()),
                    &mut g,
                    GradMode::Overwrite,
                )
                .unwrap();
                c.1 = c.1.min(i.elapsed().as_secs_f64());
            }
        }
    }
    let fl = 4.0 * (n * d * h) as f64 / 1e9;
    let show = |c: &(f64, f64, usize, usize, usize)| {
        format!("[{} {} {}: {:.1} {:.1}]", c.2, c.3, c.4, 100.0 * fl / c.0 / pk, 300.0 * fl / c.1 / pk)
    };
    cands.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!(
        "{isa} {n}x{d}x{h} peak {pk:.0} fwd best {:?} worst {}",
        cands.iter().take(5).map(show).collect::<Vec<_>>(),
        show(cands.last().unwrap())
    );
    cands.sort_by(|a, b| a.1.total_cmp(&b.1));
    println!(
        "      train best {:?} worst {}",
        cands.iter().take(5).map(show).collect::<Vec<_>>(),
        show(cands.last().unwrap())
    );
}
