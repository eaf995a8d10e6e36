#!/bin/sh
# Installs programs that some tests need: ip, ssh, pdsh, mpirun, rsync, SLURM, a browser. Tests without theirs are skipped.
# Installs only in a container: elsewhere the package openssh-server would start an sshd.
set -eu
missing=
for tool in ip:iproute2 ssh:openssh-client sshd:openssh-server nsenter:util-linux pdsh:pdsh rsync:rsync \
    mpirun.openmpi:openmpi-bin mpirun.mpich:mpich \
    slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge chromium:chromium; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ]; then
    printf 'test: installing system packages:%s\n' "$missing" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >&2 && exit 0
fi
printf 'test: some tests will be skipped; to run them, as root: apt-get install --no-install-recommends%s\n' "$missing" >&2
