//! Where the master answers.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ureq::http::Uri;

/// The port that is meant when only a host is named.
const HTTP_PORT: u16 = 7413;

/// The address of a master's HTTP side: scheme, host, port, and a path prefix if it lies behind a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MasterUrl(String);

/// Text that is no such address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UrlError {
    /// No host in it, or more than an address.
    #[error(
        "write it as http://HOST:PORT or HOST:PORT, for example 192.0.2.7:7413 or [2001:db8::7]:7413"
    )]
    Malformed,
    /// Not plain HTTP.
    #[error("only http is spoken here; reach a master behind TLS through a tunnel, such as ssh -L")]
    Scheme,
}

impl MasterUrl {
    /// The URL of `path`, which begins with a slash.
    pub(crate) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl FromStr for MasterUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let has_scheme = text.contains("://");
        let full = if has_scheme {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: Uri = full.parse().map_err(|_| UrlError::Malformed)?;
        if uri.scheme_str() != Some("http") {
            return Err(UrlError::Scheme);
        }
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        // What follows the host: nothing, or a colon and a port; a user's name would come before it.
        let after_host = authority.as_str().strip_prefix(authority.host());
        let is_whole = match after_host {
            Some("") => true,
            Some(_) => authority.port_u16().is_some(),
            None => false,
        };
        if authority.host().is_empty() || !is_whole || uri.query().is_some() {
            return Err(UrlError::Malformed);
        }
        let prefix = uri.path().trim_end_matches('/');
        let port = match authority.port_u16() {
            None if !has_scheme => format!(":{HTTP_PORT}"),
            _ => String::new(),
        };
        Ok(Self(format!("http://{authority}{port}{prefix}")))
    }
}

impl From<SocketAddr> for MasterUrl {
    fn from(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{MasterUrl, UrlError};

    #[test]
    fn a_master_is_named_in_full_or_in_short() {
        for (text, url) in [
            ("http://127.0.0.1:7413", "http://127.0.0.1:7413"),
            ("http://127.0.0.1:7413/", "http://127.0.0.1:7413"),
            ("127.0.0.1:80", "http://127.0.0.1:80"),
            ("master.example", "http://master.example:7413"),
            ("http://master.example", "http://master.example"),
            ("[::1]:7413", "http://[::1]:7413"),
            ("http://proxy/rollcall/", "http://proxy/rollcall"),
        ] {
            assert_eq!(
                text.parse::<MasterUrl>().unwrap().to_string(),
                url,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "http://",
            "a b",
            ":7413",
            "host:",
            "user@host",
            "host:99999",
            "h?q",
            "::1",
        ] {
            assert_eq!(
                text.parse::<MasterUrl>(),
                Err(UrlError::Malformed),
                "{text}"
            );
        }
        assert_eq!("https://m:7413".parse::<MasterUrl>(), Err(UrlError::Scheme));
    }
}
