//! What a run tells while it runs: typed metrics, and a small server that gives them out.
//!
//! Every metric is one line of the table in [`catalogue`]: name, kind, unit, labels, buckets and help. A line is a typed
//! [`Family`], and a handle of it exists only through a [`Telemetry`], so no metric is recorded before there is a recorder,
//! without a description, or with the wrong number of labels. `docs/metrics.md` is printed from the table; the dashboards
//! are held against it by a test.
//!
//! ```
//! use saddle_telemetry::{Telemetry, catalogue};
//!
//! let telemetry = Telemetry::new("0.1.0")?;
//! let lambda = catalogue::LAMBDA.of(&telemetry, ["harm"]);
//! lambda.set(0.5);
//! assert!(telemetry.render().contains("saddle_lambda{constraint=\"harm\"} 0.5"));
//! # Ok::<(), saddle_telemetry::TelemetryError>(())
//! ```
//!
//! Nothing is global: a test has a [`Telemetry`] of its own. The `metrics` crate is named here and nowhere else.

pub mod catalogue;
mod control;
mod error;
mod family;
mod host;
mod process;
mod reference;
mod server;
mod telemetry;
mod token;

pub use control::{CarryOut, Command, CommandError, Control, Pause, Scale};
pub use error::TelemetryError;
pub use family::{Family, Handle, Kind, SecondsCounter, Spec};
pub use metrics::{Counter, Gauge, Histogram};
pub use reference::reference;
pub use server::{DEFAULT_ADDRESS, Endpoints, Server};
pub use telemetry::Telemetry;
pub use token::ControlToken;
