//! Reads `WWW-Authenticate`: which ways of authorization a registry offers (RFC 9110, 11.6.1).
//!
//! Invariant: any bytes give a (possibly empty) list, never a panic; a header that cannot be read to its end gives
//! what could be read before the fault.

/// One way of authorization that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Username and password with every request.
    Basic,
    /// A token from a token server.
    Bearer {
        /// Where tokens are given out.
        realm: String,
        /// What the token server calls the registry.
        service: Option<String>,
    },
}

/// All challenges of one header value that this client can meet; other schemes are left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = Reader(header);
    let mut current: Option<Open> = None;
    loop {
        rest.skip(" \t,");
        let Some(word) = rest.token() else { break };
        rest.skip(" \t");
        if rest.take('=') {
            rest.skip(" \t");
            let Some(value) = rest.value() else { break };
            if let Some(open) = &mut current {
                open.set(word, value);
            }
        } else {
            found.extend(current.take().and_then(Open::close));
            current = Some(Open::new(word));
        }
    }
    found.extend(current.and_then(Open::close));
    found
}

/// A challenge whose parameters are still being read.
struct Open {
    scheme: String,
    realm: Option<String>,
    service: Option<String>,
}

impl Open {
    fn new(scheme: &str) -> Self {
        Self {
            scheme: scheme.to_ascii_lowercase(),
            realm: None,
            service: None,
        }
    }

    fn set(&mut self, name: &str, value: String) {
        if name.eq_ignore_ascii_case("realm") {
            self.realm = Some(value);
        } else if name.eq_ignore_ascii_case("service") {
            self.service = Some(value);
        }
    }

    fn close(self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: self.realm?,
                service: self.service,
            }),
            _ => None,
        }
    }
}

struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn skip(&mut self, characters: &str) {
        self.0 = self.0.trim_start_matches(|c| characters.contains(c));
    }

    fn take(&mut self, character: char) -> bool {
        match self.0.strip_prefix(character) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self
            .0
            .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
            .unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token or a quoted string with its escapes undone.
    fn value(&mut self) -> Option<String> {
        if !self.take('"') {
            // Unquoted values of real registries hold more than tokens do (URLs): they end at a comma or blank.
            let end = self.0.find([',', ' ', '\t']).unwrap_or(self.0.len());
            let (value, rest) = self.0.split_at(end);
            self.0 = rest;
            return Some(value.to_owned());
        }
        let mut value = String::new();
        let mut characters = self.0.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => value.push(characters.next()?),
                other => value.push(other),
            }
        }
        self.0 = characters.as_str();
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
        }
    }

    #[test]
    fn headers_of_registries() {
        for (header, challenges) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, BEARER Realm="https://a/t?x=\"1\",2" , error="invalid_token", Basic realm="x, y=z""#,
                vec![bearer(r#"https://a/t?x="1",2"#, None), Challenge::Basic],
            ),
            (
                "Bearer realm=https://a/token,service=b",
                vec![bearer("https://a/token", Some("b"))],
            ),
            (r#"Bearer service="no realm""#, vec![]),
            (
                r#"Basic realm="open, Bearer realm="x""#,
                vec![Challenge::Basic],
            ),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), challenges, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(header in "\\PC{0,80}") {
            let _ = parse(&header);
        }

        #[test]
        fn quoted_values_survive(realm in "[ -~]{1,40}", service in "[ -~]{0,40}") {
            let quote = |s: &str| s.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!(
                "Digest a=b, Bearer realm=\"{}\", service=\"{}\", Basic realm=x",
                quote(&realm), quote(&service)
            );
            prop_assert_eq!(parse(&header), vec![bearer(&realm, Some(&service)), Challenge::Basic]);
        }
    }
}
