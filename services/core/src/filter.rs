//! What a session may read.
use std::collections::BTreeSet;

/// Tenants whose records a session may read. A record without a tenant is for those who may read all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenants {
    All,
    Only(BTreeSet<String>),
}

impl Tenants {
    /// Whether records of this tenant may be read; empty for records that have none.
    pub fn allow(&self, tenant_id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(tenants) => !tenant_id.is_empty() && tenants.contains(tenant_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_read_only_where_it_is_named() {
        let only = |names: &[&str]| Tenants::Only(names.iter().map(ToString::to_string).collect());
        for (why, tenants, tenant, allowed) in [
            ("all means all", Tenants::All, "acme", true),
            ("all means those without a tenant too", Tenants::All, "", true),
            ("one that is named", only(&["acme", "beta"]), "beta", true),
            ("one that is not", only(&["acme"]), "acm", false),
            ("none is none", only(&[]), "acme", false),
            ("no tenant is nobody's, whatever was named", only(&[""]), "", false),
        ] {
            assert_eq!(tenants.allow(tenant), allowed, "{why}");
        }
    }
}
