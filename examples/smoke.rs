#![allow(missing_docs, reason = "scratch")]
use resblock::*;
fn main() {
    let ctx = Context::new().unwrap();
    println!("{:?}", fma_peak(&ctx, std::time::Duration::from_millis(300)));
    for isa in Isa::available() {
        let ctx = ctx.with_isa(isa).unwrap();
        let (n, d, h) = (37, 129, 257);
        let block = Block::residual(d, h, Activation::Relu, &mut Init::he(1)).unwrap();
        let x: Vec<f32> = (0..n * d).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect();
        let mut y = vec![0.0; n * d];
        let mut ws = Workspace::new();
        block.infer(&ctx, &mut ws, MatRef::new(&x, n, d).unwrap(), MatMut::new(&mut y, n, d).unwrap()).unwrap();
        let dump = |p: Parameter| {
            let (r, c) = p.shape();
            let mut v = vec![0.0; r * c];
            p.write_to(MatMut::new(&mut v, r, c).unwrap()).unwrap();
            v
        };
        let ps: Vec<_> = block.parameters().map(dump).collect();
        let bp = reference::BlockParams {
            w1: &ps[0],
            b1: &ps[1],
            w2: &ps[2],
            b2: &ps[3],
            phi: Activation::Relu,
            skip: true,
        };
        let r = reference::block((n, d, h), &x, bp);
        println!("{isa} fwd equal {}", r.y.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
        let mut g = Gradients::new(&block).unwrap();
        let mut dx = vec![0.0; n * d];
        let pass =
            block.forward(&ctx, &mut ws, MatRef::new(&x, n, d).unwrap(), MatMut::new(&mut y, n, d).unwrap()).unwrap();
        pass.backward(
            MatRef::new(&x, n, d).unwrap(),
            Some(MatMut::new(&mut dx, n, d).unwrap()),
            &mut g,
            GradMode::Overwrite,
        )
        .unwrap();
        let mut rg = reference::BlockGrads::zeros((n, d, h));
        reference::block_backward((n, d, h), &x, bp, &r, &x, &mut rg);
        let gs: Vec<_> = g.iter().map(dump).collect();
        println!(
            "{isa} dx {} dw1 {} db1 {} dw2 {} db2 {}",
            dx == rg.dx,
            gs[0] == rg.dw1,
            gs[1] == rg.db1,
            gs[2] == rg.dw2,
            gs[3] == rg.db2
        );
    }
    for isa in [Isa::Avx512, Isa::Avx2] {
        let ctx = ctx.with_isa(isa).unwrap();
        let pk = fma_peak(&ctx, std::time::Duration::from_millis(300)).gflops;
        for (n, d, h) in [
            (256, 256, 256),
            (126, 384, 1536),
            (128, 384, 1536),
            (1024, 512, 512),
            (4096, 64, 64),
            (64, 128, 128),
            (1, 128, 128),
            (8, 256, 256),
            (512, 768, 3072),
        ] {
            for act in [Activation::Relu, Activation::GeluTanh] {
                let mut block = Block::residual(d, h, act, &mut Init::he(1)).unwrap();
                let x: Vec<f32> = (0..n * d).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect();
                let mut y = vec![0.0; n * d];
                let mut dx = vec![0.0; n * d];
                let mut ws = Workspace::new();
                let mut g = Gradients::new(&block).unwrap();
                let (mut f, mut t) = (f64::MAX, f64::MAX);
                let b = std::time::Instant::now();
                while b.elapsed().as_secs_f64() < 0.4 {
                    let i = std::time::Instant::now();
                    block
                        .infer(&ctx, &mut ws, MatRef::new(&x, n, d).unwrap(), MatMut::new(&mut y, n, d).unwrap())
                        .unwrap();
                    f = f.min(i.elapsed().as_secs_f64());
                    let i = std::time::Instant::now();
                    block.affine_mut(0).unwrap().weights_mut().update(&ctx, |_| ());
                    block.affine_mut(1).unwrap().weights_mut().update(&ctx, |_| ());
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
                    t = t.min(i.elapsed().as_secs_f64());
                }
                let fl = 4.0 * (n * d * h) as f64 / 1e9;
                println!(
                    "{isa} {n}x{d}x{h} {}: fwd {:.1} % ({:.1} us), train {:.1} %  peak {pk:.0}",
                    act.name(),
                    100.0 * fl / f / pk,
                    f * 1e6,
                    300.0 * fl / t / pk
                );
            }
        }
    }
}
