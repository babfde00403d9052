//! What depends on metadata behaves inside the container as after a normal pull.

use anyhow::{Result, ensure};
use forelayer_tests::engine::{
    images::Format,
    podman::{Generation, Podman},
};

use crate::{
    Test, for_each_lazy,
    lab::{DEMAND_ONLY, Lab},
};

pub(crate) fn add(tests: &mut Vec<Test>) {
    for generation in Generation::ALL {
        tests.push((
            format!("behaviour::normal_pull::{}", generation.name()),
            Box::new(move |lab| ordinary(lab, generation)),
        ));
    }
    for_each_lazy(tests, "behaviour::permissions_and_whiteouts", behaves);
}

/// Run as the user 1000; each line says what must come out.
const AS_USER: &str = r#"
set -eu
echo "setuid $(/hard/permissions/id-setuid -u)"
echo "plain $(id -u)"
echo "capable $(/hard/permissions/cat-capable /hard/permissions/secret)"
cat /hard/permissions/secret 2>/dev/null && echo "incapable too" || true
echo "many $(ls /hard/many | wc -l)"
echo "links $(stat -c %h /hard/links/first)"
"#;

const AS_USER_SAYS: &str =
    "setuid 0\nplain 1000\ncapable read by root and the capable only\nmany 10000\nlinks 3";

/// Run as root: what is gone, what is new, and what happens when the container itself writes.
const AS_ROOT: &str = r#"
set -eu
cd /hard/doomed
echo "opaque" $(ls opaque) / $(ls opaque/below)
echo "empty" $(ls -A empty-opaque)
echo "merged" $(ls merged)
for gone in file directory; do test ! -e $gone || echo "$gone is there"; done
echo "kinds" $(stat -c %F file-to-directory directory-to-file directory-to-link)
rm -r opaque && mkdir opaque && echo "opaque again" $(ls -A opaque)
rm merged/kept && echo "merged again" $(ls merged)
mv merged renamed && echo "renamed" $(ls renamed)
echo more >> /hard/contents/text && tail -n 1 /hard/contents/text
chmod 600 /hard/contents/noise-4194305 && sha256sum < /hard/contents/noise-4194305 | cut -c1-8
test -p /hard/devices/fifo && test -c /hard/devices/null && test -b /hard/devices/loop && echo "devices"
"#;

const AS_ROOT_SAYS: &str = "opaque below new / new\nempty\nmerged kept new\n\
    kinds directory regular file symbolic link\nopaque again\nmerged again new\nrenamed new\nmore\nc3292661\ndevices";

fn behaves(lab: &Lab, generation: Generation, format: Format) -> Result<()> {
    let store = lab.running(DEMAND_ONLY)?;
    let podman = lab.podman(generation, Some(&store.mount()))?;
    behaves_as_expected(&podman, &lab.reference(format, "hard"))?;
    ensure!(
        store.metric("forelayer_layers")? >= 3.0,
        "the layers are not served"
    );
    Ok(())
}

/// What the tests expect is what a normal pull gives.
fn ordinary(lab: &Lab, generation: Generation) -> Result<()> {
    let podman = lab.podman(generation, None)?;
    behaves_as_expected(&podman, &lab.reference(Format::Gzip, "hard"))
}

fn behaves_as_expected(podman: &Podman<'_>, reference: &str) -> Result<()> {
    podman.run(&["pull", reference])?;
    for (user, script, expected) in [
        ("1000:1000", AS_USER, AS_USER_SAYS),
        ("0:0", AS_ROOT, AS_ROOT_SAYS),
    ] {
        let said = podman.run(&[
            "run", "--rm", "--user", user, reference, "bash", "-c", script,
        ])?;
        ensure!(
            said == expected,
            "as {user} the container says {said:?}, not {expected:?}"
        );
    }
    Ok(())
}
