//! Pages that may use this gateway. A browser names the page's origin, and sends the user's right to be here along
//! with whatever the page asks.
use axum::http::{HeaderMap, Uri, header};
use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

/// Origins that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every page of the web.
    Any,
    /// These, as browsers write them: `https://console.example`.
    Only(BTreeSet<String>),
}

impl Default for Origins {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
        texts.map(origin).collect::<Result<_, _>>().map(Self::Only)
    }
}

fn origin(text: &str) -> Result<String, String> {
    let wrong =
        || format!("expected origins such as `https://console.example`, or `*` for all, found `{text}`");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let is_origin = matches!(uri.scheme_str(), Some("http" | "https")) && matches!(uri.path(), "" | "/");
    let host = uri.authority().filter(|_| is_origin && uri.query().is_none()).ok_or_else(wrong)?;
    Ok(format!("{}://{}", uri.scheme_str().unwrap_or_default(), host.as_str().to_ascii_lowercase()))
}

impl Origins {
    /// Whether the page that sent this may. What names no origin is no page in a browser.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        origin.to_str().is_ok_and(|origin| self.lists(origin) || is_own(origin, host))
    }

    /// Whether the origin is in the list.
    pub fn lists(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(origins) => origins.contains(&origin.to_ascii_lowercase()),
        }
    }
}

/// The page came from this gateway itself, as far as the name in the browser's bar tells. That is believed of
/// addresses and of `localhost` only: any other name may have been pointed here by whoever made the page.
fn is_own(origin: &str, host: &str) -> bool {
    let Some((_, of_page)) = origin.split_once("://") else { return false };
    let name = host.parse::<Uri>().ok().and_then(|uri| Some(uri.host()?.to_owned())).unwrap_or_default();
    let is_sure = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_sure && of_page.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_listed_or_our_own_are_allowed() {
        let listed: Origins = "https://Console.example, http://localhost:5173".parse().unwrap();
        for (why, origin, host, allowed) in [
            ("no page at all", None, "gateway.example", true),
            ("listed", Some("https://console.example"), "gateway.example", true),
            ("listed, with a port", Some("http://localhost:5173"), "gateway.example", true),
            ("another scheme", Some("http://console.example"), "gateway.example", false),
            ("another port", Some("https://console.example:8443"), "gateway.example", false),
            ("a longer name", Some("https://console.example.evil.example"), "gateway.example", false),
            ("a page without an origin", Some("null"), "gateway.example", false),
            ("our own page at an address", Some("http://127.0.0.1:8080"), "127.0.0.1:8080", true),
            ("our own page on this machine", Some("http://localhost:8080"), "localhost:8080", true),
            (
                "our own page at an address of the sixth version",
                Some("http://[::1]:8080"),
                "[::1]:8080",
                true,
            ),
            ("a name that was pointed here", Some("http://evil.example:8080"), "evil.example:8080", false),
            ("another port of this machine", Some("http://localhost:9999"), "localhost:8080", false),
            ("nothing to compare with", Some("http://localhost:9999"), "", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(listed.allow(&headers), allowed, "{why}");
            let any: Origins = "*".parse().unwrap();
            assert!(any.allow(&headers), "{why}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        assert_eq!("".parse::<Origins>(), Ok(Origins::default()));
        for bad in
            ["console.example", "https://a/path", "ftp://a", "https://*.example/?", "*,https://a", "null"]
        {
            assert!(bad.parse::<Origins>().unwrap_err().contains("https://console.example"), "{bad}");
        }
    }
}
