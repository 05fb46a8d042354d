//! Loopback addresses, and the smallest HTTP client that can ask an operations port.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Below the range from which Linux takes the ports of outgoing connections (32768 and up): no
/// client can be given a port while the server that owns it is being restarted.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// A loopback port that nobody listens on. Never given out twice by one process; another process
/// may still take it first, so whoever binds it must be ready to ask again.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() * 64 % u32::from(span)).expect("less than the span");
    (0..span)
        .map(|_| PORTS.start + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % span)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("find a free port")
}

/// A loopback address with a [`free_port`].
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// What an HTTP server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One request of HTTP/1.1 on a connection of its own.
///
/// # Panics
/// Where there is no answer within 5 s.
pub async fn request(
    address: &str,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        // It may refuse before it has read all.
        let _sent = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer).await;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(HTTP_TIMEOUT, ask).await.expect("an answer in time").expect("a connection");
    read_answer(&answer).unwrap_or_else(|| panic!("no HTTP answer: {}", String::from_utf8_lossy(&answer)))
}

fn read_answer(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let headers: BTreeMap<_, _> =
        lines.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let is_chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    let body = if is_chunked { dechunk_bytes(body) } else { body.to_vec() };
    Some(Answer { status, headers, body })
}

fn dechunk_bytes(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(line) = body.windows(2).position(|window| window == b"\r\n") {
        let size =
            std::str::from_utf8(&body[..line]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(chunk) = size.filter(|size| *size > 0).and_then(|size| body.get(line + 2..line + 2 + size))
        else {
            break;
        };
        whole.extend_from_slice(chunk);
        body = body.get(line + 4 + chunk.len()..).unwrap_or_default();
    }
    whole
}

/// Status and body of one `GET`.
///
/// # Errors
/// Says what went wrong: nobody listens, no answer within 5 s, or not HTTP.
pub(crate) async fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(HTTP_TIMEOUT, ask).await.map_err(|_| format!("{address}{path}: no answer"))?;
    let answer = answer.map_err(|error| format!("{address}{path}: {error}"))?;
    parse(&answer).ok_or_else(|| format!("{address}{path}: this is no HTTP answer"))
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    Some((status, if chunked { dechunk(body) } else { body.to_owned() }))
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        whole.push_str(chunk);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_and_without_chunks() {
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let chunked =
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(plain), Some((200, "ok".to_owned())));
        assert_eq!(parse(chunked), Some((503, "abcde".to_owned())));
        assert_eq!(parse(b"SSH-2.0"), None);
    }

    #[test]
    fn no_port_is_given_out_twice() {
        let ports: std::collections::HashSet<_> = (0..100).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 100);
    }
}
