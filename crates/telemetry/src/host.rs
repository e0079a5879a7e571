//! Which host a request was made for. A web page may reach this port through a name of its own that leads here; the name stands
//! in the `Host` header then.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// Answers requests that were made for this machine under its own name. One without a `Host` is no browser's.
pub(crate) async fn require_loopback(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if !headers.contains_key(header::HOST) || is_loopback(headers) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "this port is for this machine: use 127.0.0.1 or localhost\n").into_response()
}

/// Whether the request names one host, and that is this machine, with or without a port.
pub(crate) fn is_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) => is_loopback_host(host),
        _ => false,
    }
}

fn is_loopback_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port),
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let is_bracketed = host.starts_with('[');
    let is_name = match name.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() && address.is_ipv6() == is_bracketed,
        Err(_) => !is_bracketed && name.eq_ignore_ascii_case("localhost"),
    };
    is_port && is_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        for host in ["127.0.0.1", "127.0.0.1:9464", "localhost", "LOCALHOST:80", "[::1]", "[::1]:9464", "127.1.2.3:1"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            ":9464",
            "example.com",
            "127.0.0.1.example.com",
            "127.0.0.1:evil",
            "127.0.0.1:99999",
            "localhost:80@example.com",
            "localhost.",
            "[::1]evil",
            "[127.0.0.1]",
            "[localhost]",
            "::1",
            "[::1",
            "10.0.0.1",
            "127.0.0.1 ",
            "127.0.0.1:",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
        let twice = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        let mut headers = twice.clone();
        assert!(is_loopback(&headers));
        headers.append(header::HOST, "example.com".parse().unwrap());
        assert!(!is_loopback(&headers));
    }
}
