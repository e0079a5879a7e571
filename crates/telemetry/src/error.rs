//! Why there is no telemetry.

use std::net::SocketAddr;
use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The recorder refused its configuration.
    #[error("metric {name}: {source}")]
    Buckets {
        /// The histogram whose buckets were refused.
        name: &'static str,
        /// What the recorder says.
        source: metrics_exporter_prometheus::BuildError,
    },
    /// The token of control requests cannot be used.
    #[error("{}: {reason}", path.display())]
    Token {
        /// The file that should have it.
        path: PathBuf,
        /// What is wrong with it. The token is not in it.
        reason: String,
    },
    /// The server cannot have its address.
    #[error("cannot listen on {address}: {source}; choose another port, or 0 for any")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}
