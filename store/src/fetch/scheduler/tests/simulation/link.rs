//! A registry behind a link: what a request costs, and how bodies share what the link carries.

use std::collections::VecDeque;

use super::{
    super::super::RequestId,
    trace::{Dice, MS, Nanos, SECOND, seconds},
};

/// What a body that nobody reads still receives: the kernel's buffer for a connection.
const BUFFER: f64 = 256e3;
/// A connection's first window (RFC 6928).
const FIRST_WINDOW: f64 = 10.0 * 1460.0;
/// The store gives a stalled body up after so long.
const PATIENCE: Nanos = 20 * SECOND;

/// A link and the registry's host behind it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// From a request to the first byte of its answer, on an open connection.
    pub(super) latency: Nanos,
    /// Of making a connection.
    pub(super) set_up: Nanos,
    /// Bytes a second of all bodies together.
    pub(super) rate: f64,
    /// Requests that the host works at; others wait there.
    pub(super) at_once: usize,
    /// Whether a new connection starts slowly, as TCP does.
    pub(super) slow_start: bool,
    /// One request in so many goes wrong; 0: none.
    pub(super) faults: u64,
}

impl Link {
    pub(super) fn new(ms: f64, mbit: f64) -> Self {
        let latency = (ms * MS as f64) as Nanos;
        Self {
            latency,
            set_up: latency,
            rate: mbit * 125e3,
            at_once: 1000,
            slow_start: false,
            faults: 0,
        }
    }
    /// When the first byte of a first request can be there.
    pub(super) fn first_byte(&self) -> Nanos {
        self.set_up + self.latency
    }
}

/// What a request on its way tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Its answer has begun.
    Flowing,
    /// Everything up to this part of the range was read.
    Read(u64),
    /// Its body is at its end.
    Over,
    /// It ended before its time.
    Broken,
    /// The host refused it.
    Busy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its connection is made, or its answer waited for, until then.
    Asked(Nanos),
    /// The host has no time for it.
    Waiting,
    Flowing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Busy,
    /// Ends after so many bytes.
    Short(u64),
    /// Stands still after so many bytes until the store gives it up.
    Stalled(u64),
}

#[derive(Debug)]
struct Flight {
    id: RequestId,
    phase: Phase,
    len: f64,
    /// Ends of the parts that are told of, in order.
    marks: VecDeque<u64>,
    came: f64,
    /// Bytes that had come when its reading stopped.
    held: Option<f64>,
    window: f64,
    grows: Nanos,
    rate: f64,
    fault: Option<Fault>,
    gives_up: Nanos,
}

impl Flight {
    /// Up to where bytes come, as it stands.
    fn end(&self) -> f64 {
        let end = match self.fault {
            Some(Fault::Short(at) | Fault::Stalled(at)) => self.len.min(at as f64),
            _ => self.len,
        };
        self.held.map_or(end, |held| end.min(held + BUFFER))
    }
    fn flows(&self) -> bool {
        self.phase == Phase::Flowing && self.came + 0.5 < self.end()
    }
    /// The next place at which there is something to tell.
    fn mark(&self) -> f64 {
        let mark = (self.held.is_none())
            .then(|| self.marks.front())
            .flatten()
            .map_or(f64::MAX, |mark| *mark as f64);
        mark.min(self.end())
    }
}

/// The link at work.
#[derive(Debug)]
pub(super) struct Wire {
    link: Link,
    now: Nanos,
    flights: Vec<Flight>,
    /// Windows of connections that are open and not used.
    idle: Vec<f64>,
    dice: Dice,
    shared: bool,
}

impl Wire {
    pub(super) fn new(link: &Link, seed: u64) -> Self {
        Self {
            link: link.clone(),
            now: 0,
            flights: Vec::new(),
            idle: Vec::new(),
            dice: Dice::new(seed),
            shared: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Asks for so many bytes; `marks` are told of when everything up to them is here.
    pub(super) fn ask(&mut self, id: RequestId, len: u64, marks: VecDeque<u64>) {
        let (window, set_up) = match self.idle.pop() {
            Some(window) => (window, 0),
            None => (FIRST_WINDOW, self.link.set_up),
        };
        let faulty = self.link.faults > 0 && self.dice.within(1, self.link.faults) == 1;
        let fault = faulty.then(|| match self.dice.within(0, 9) {
            0..5 => Fault::Busy,
            5..9 => Fault::Short(self.dice.within(0, len - 1)),
            _ => Fault::Stalled(self.dice.within(0, len - 1)),
        });
        let answered = |flight: &&Flight| flight.phase != Phase::Waiting;
        let busy = self.flights.iter().filter(answered).count() >= self.link.at_once;
        self.flights.push(Flight {
            id,
            phase: if busy {
                Phase::Waiting
            } else {
                Phase::Asked(self.now + set_up + self.link.latency)
            },
            len: len as f64,
            marks,
            came: 0.0,
            held: None,
            window,
            grows: 0,
            rate: 0.0,
            fault,
            gives_up: Nanos::MAX,
        });
    }

    /// Stops reading a body, or goes on.
    pub(super) fn hold(&mut self, id: RequestId, hold: bool) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) {
            flight.held = hold.then_some(flight.came);
            self.shared = false;
        }
    }

    /// When there is something to tell, if nothing else happens.
    pub(super) fn next(&mut self) -> Option<Nanos> {
        self.share();
        let times = self.flights.iter().filter_map(|flight| match flight.phase {
            Phase::Asked(at) => Some(at),
            Phase::Waiting => None,
            Phase::Flowing if flight.held.is_none() && flight.mark() <= flight.came + 0.5 => {
                let stalls = matches!(flight.fault, Some(Fault::Stalled(at)) if flight.came + 0.5 >= at as f64);
                let marked = flight.marks.front().is_some_and(|mark| *mark as f64 <= flight.came + 0.5);
                Some(if stalls && !marked { flight.gives_up } else { self.now })
            }
            Phase::Flowing if flight.flows() => {
                let whole = seconds((flight.mark() - flight.came) / flight.rate);
                let grows = if self.limited(flight) { flight.grows } else { Nanos::MAX };
                Some((self.now + whole).min(grows))
            }
            Phase::Flowing => None,
        });
        times.min()
    }

    fn limited(&self, flight: &Flight) -> bool {
        self.link.slow_start && flight.window / (self.link.latency as f64 / 1e9) < self.link.rate
    }

    /// Lets time pass up to then, which is not after [`Wire::next`], and tells what happened.
    pub(super) fn pass(&mut self, until: Nanos) -> Vec<(RequestId, News)> {
        self.share();
        let elapsed = (until - self.now) as f64 / 1e9;
        self.now = until;
        let mut news = Vec::new();
        let mut over = Vec::new();
        for flight in &mut self.flights {
            if flight.flows() {
                flight.came = (flight.came + flight.rate * elapsed).min(flight.end());
                self.shared &= flight.flows();
                if flight.grows <= until {
                    flight.window *= 2.0;
                    flight.grows = until + self.link.latency.max(1);
                    self.shared = false;
                }
            }
            match flight.phase {
                Phase::Asked(at) if at <= until => {
                    self.shared = false;
                    if flight.fault == Some(Fault::Busy) {
                        news.push((flight.id, News::Busy));
                        over.push(flight.id);
                        continue;
                    }
                    flight.phase = Phase::Flowing;
                    flight.grows = until + self.link.latency.max(1);
                    flight.gives_up = until + PATIENCE;
                    news.push((flight.id, News::Flowing));
                }
                Phase::Flowing => {}
                Phase::Asked(_) | Phase::Waiting => continue,
            }
            if flight.held.is_some() {
                continue;
            }
            while let Some(mark) = flight.marks.front()
                && *mark as f64 <= flight.came + 0.5
            {
                news.push((flight.id, News::Read(*mark)));
                flight.marks.pop_front();
            }
            if flight.came + 0.5 < flight.end() {
                continue;
            }
            let end = match flight.fault {
                Some(Fault::Short(_)) => News::Broken,
                Some(Fault::Stalled(_)) if flight.gives_up > until => continue,
                Some(Fault::Stalled(_)) => News::Broken,
                _ => News::Over,
            };
            if end == News::Over {
                self.idle.push(flight.window);
            }
            news.push((flight.id, end));
            over.push(flight.id);
        }
        if !over.is_empty() {
            self.shared = false;
            self.flights.retain(|flight| !over.contains(&flight.id));
            let answered = |flight: &&Flight| flight.phase != Phase::Waiting;
            let mut busy = self.flights.iter().filter(answered).count();
            for flight in &mut self.flights {
                if flight.phase == Phase::Waiting && busy < self.link.at_once {
                    flight.phase = Phase::Asked(until + self.link.latency);
                    busy += 1;
                }
            }
        }
        news
    }

    /// Each body gets the same, but none more than its connection's window lets through.
    fn share(&mut self) {
        if self.shared {
            return;
        }
        self.shared = true;
        let round_trip = (self.link.latency.max(1)) as f64 / 1e9;
        let slow_start = self.link.slow_start;
        let most = |flight: &Flight| match slow_start {
            true => flight.window / round_trip,
            false => f64::MAX,
        };
        let mut flowing: Vec<_> = (self.flights.iter_mut())
            .filter(|flight| flight.flows())
            .collect();
        flowing.sort_by(|a, b| most(a).total_cmp(&most(b)));
        let (mut left, mut count) = (self.link.rate, flowing.len());
        for flight in flowing {
            flight.rate = most(flight).min(left / count as f64);
            left -= flight.rate;
            count -= 1;
        }
    }
}
