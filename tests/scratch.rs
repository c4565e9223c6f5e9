use quant::container::Checkpoint;
use quant::container::hf::HfFolder;
#[test]
fn real() {
    for d in std::env::var("DIRS").unwrap().split(':') {
        let t0 = std::time::Instant::now();
        let m = match HfFolder::open(std::path::Path::new(d)) {
            Ok(m) => m,
            Err(e) => {
                println!("{d}: {e}");
                continue;
            }
        };
        let dt = t0.elapsed();
        let mut n = 0;
        for (i, t) in m.tensors().iter().enumerate() {
            for p in 0..t.planes() {
                n += m.read(i, p).unwrap().packed.parts.iter().map(|p| p.len()).sum::<usize>()
            }
        }
        println!("{d}: {} {} tensors {n} bytes in {dt:?}, dropped {:?}", m.arch(), m.tensors().len(), m.dropped());
        let md = m.metadata();
        for (k, v) in md.as_ref().map(|m| m.iter().collect::<Vec<_>>()).unwrap_or_default() {
            let s = v.to_string();
            println!("   {k} = {}", &s.chars().take(60).collect::<String>());
        }
        if let Err(e) = md {
            println!("   {e}");
        }
        if std::env::var("LIST").is_ok() {
            for t in m.tensors() {
                println!("T {} {:?} {}", t.name, t.shape, t.codec.name())
            }
        }
    }
}
