//! Twenty starts at once, of one image and of twenty that have nothing in common, after each was learned: when all are
//! ready, against the limit of them together.

use std::{path::Path, thread, time::Instant};

use anyhow::{Context as _, Result, bail};
use forelayer_tests::engine::{environment, podman::Podman, process, store::Store};

use super::{
    super::{
        limit::{self, Limit, Warm},
        report::megabytes,
        stats::median,
    },
    figure::{Figure, Goal},
    lab::{LATENCY, Lab, Published, afresh},
    node::{self, Node},
};

const STARTS: usize = 20;
/// Of the learned starts, and of the warm ones.
const ROUNDS: usize = 3;
/// How often warm starts are made until all were recorded.
const ATTEMPTS: usize = 3;
/// 1 Gbit/s, in bytes a second.
const RATE: u64 = 125_000_000;
/// All starts are kept, since the limit is of all; and no background lane, which would bring gigabytes.
const OPTIONS: &str =
    "[fetch]\nbackground = false\n[prefetch]\nkeep_runs = 64\n[witness]\nquiet = 3\n";

pub(super) fn measure(program: &Path) -> Result<Vec<Figure>> {
    let environment = environment::prepare()?;
    let lab = Lab::new(program)?;
    let node = Node::new(&lab, &environment, program)?;
    let mut figures = Vec::new();
    for (name, images) in [("one image", 1), ("20 images", STARTS)] {
        let images = (0..images)
            .map(|variant| node.publish(variant))
            .collect::<Result<Vec<_>>>()?;
        let store = lab.store(&format!("store-{}", images.len()), OPTIONS)?;
        let row = Many {
            lab: &lab,
            node: &node,
            store,
            images,
            number: 0,
        };
        figures.extend(row.measure(name)?);
    }
    Ok(figures)
}

struct Many<'a> {
    lab: &'a Lab,
    node: &'a Node<'a>,
    store: Store<'a>,
    images: Vec<Published>,
    /// Of the engine's storages.
    number: u32,
}

/// Starts at once.
struct Started {
    /// When the first pull began, in Unix time.
    begun: f64,
    /// Whether the store has learned all of them.
    recorded: bool,
    /// Seconds from then to the last one's line.
    ready: f64,
    /// The same to the one in the middle.
    middle: f64,
    bytes: u64,
}

impl Many<'_> {
    fn measure(mut self, name: &str) -> Result<Vec<Figure>> {
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        let mut unlearned = 0.0;
        for round in 0..=ROUNDS {
            // The first has no profile; the others have those of all before.
            self.store.stop()?;
            if round == 0 {
                afresh(&mut self.store)?;
            } else {
                self.store.forget()?;
                self.store.start()?;
            }
            self.store.watch()?;
            let started = self.start(true)?;
            println!("  {name}, round {round}: {:.2} s", started.ready);
            if round == 0 {
                unlearned = started.ready;
            } else {
                cold.push(started);
            }
        }
        for _ in 0..ROUNDS {
            warm.push(self.warm()?);
        }
        self.store.stop()?;
        #[expect(clippy::cast_precision_loss, reason = "a bandwidth")]
        let limit = Limit::of(&warm, LATENCY.as_secs_f64(), RATE as f64)?;
        let of = |figure: fn(&Started) -> f64| median(&cold.iter().map(figure).collect::<Vec<_>>());
        let ready = of(|started| started.ready);
        // The other part takes minutes, and may fail.
        println!("  {name}: {ready:.2} s, T* {:.2} s", limit.t_star);
        Ok(vec![
            Figure::new(
                format!("20 starts of {name} at once: all ready, to their joint T*"),
                Goal::AtMost(1.1),
                ready / limit.t_star,
                "",
            )
            .beside(format!(
                "{ready:.2} s (half of them {:.2} s) to {:.2} s (G {:.2}, T_w {:.2}, {:.1} MB needed, {:.1} MB brought); \
                 unlearned {unlearned:.2} s",
                of(|started| started.middle),
                limit.t_star,
                limit.g,
                limit.t_w,
                megabytes(limit.bytes),
                of(|started| megabytes(started.bytes)),
            )),
        ])
    }

    /// Starts with everything local, the second time.
    fn warm(&mut self) -> Result<Warm> {
        for image in &self.images {
            process::run(&mut self.store.command(&["prefetch", "--all", &image.reference]))?;
        }
        self.start(false)?;
        for _ in 0..ATTEMPTS {
            let started = self.start(false)?;
            if started.recorded {
                return limit::joint(&self.store, started.begun, started.ready, STARTS);
            }
        }
        bail!(
            "of {STARTS} starts at once not all were recorded, {ATTEMPTS} times; the log of watch ends:\n{}",
            self.store.log_end("watch")
        )
    }

    /// All at once, with an empty storage of the engine; over when the store has learned them.
    fn start(&mut self, cold: bool) -> Result<Started> {
        self.number += 1;
        let podman = self.node.podman(
            &format!("many-{}-{}", self.images.len(), self.number),
            &self.store,
        )?;
        if cold {
            self.node.cold()?;
        }
        self.shape(true);
        self.lab.server.log().clear();
        let begun = node::now()?;
        let begin = Instant::now();
        let ready = node::recorded(&self.store, STARTS, || self.all(&podman));
        self.shape(false);
        let (mut ready, recorded) = ready?;
        ready.sort();
        let since =
            |at: Option<&Instant>| at.map(|at| (*at - begin).as_secs_f64()).context("no start");
        Ok(Started {
            begun,
            recorded,
            ready: since(ready.last())?,
            middle: since(ready.get(STARTS / 2))?,
            bytes: self.lab.server.log().bytes(),
        })
    }

    /// Pulls, each image once, and runs; answers when each was ready.
    fn all(&self, podman: &Podman<'_>) -> Result<Vec<Instant>> {
        let pull = |image: &Published| podman.command(&["pull", "--quiet", &image.reference]);
        let mut starts = Vec::new();
        for number in 0..STARTS {
            let image = &self.images[number % self.images.len()];
            let start = node::start(podman, &format!("start{number}"), &image.reference);
            // Where all start one image it is pulled before; else each is pulled by whoever starts it.
            let pull = (self.images.len() > 1).then(|| pull(image));
            starts.push((pull, start));
        }
        if let [image] = &self.images[..] {
            process::run(&mut pull(image))?;
        }
        thread::scope(|scope| {
            let threads: Vec<_> = (starts.into_iter())
                .map(|(pull, start)| {
                    scope.spawn(move || {
                        if let Some(mut pull) = pull {
                            process::run(&mut pull)?;
                        }
                        node::ready(start)
                    })
                })
                .collect();
            (threads.into_iter())
                .map(|thread| {
                    let ended = thread.join();
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    }

    /// The link of the bench.
    fn shape(&self, on: bool) {
        let latency = if on {
            LATENCY
        } else {
            std::time::Duration::ZERO
        };
        self.lab.server.set_latency(latency);
        self.lab.server.set_connection_latency(latency);
        self.lab.server.set_bandwidth(on.then_some(RATE));
    }
}
