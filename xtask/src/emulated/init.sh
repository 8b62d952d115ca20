#!/bin/busybox sh
# The first process of the emulated machine: makes what tests find on any machine, runs each test
# program, and switches the machine off. What it says goes to the second serial line, where no
# message of the kernel comes between.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp FLATNET_EMULATED=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /tmp /run /root
mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec >/dev/ttyS1 2>&1 </dev/null
stty -opost -echo </dev/ttyS1
# The kernel asks for modules itself; busybox answers. Of two who ask for one at once it lets the
# second go on while the first still loads it, who then finds nothing there: so all wait, a second at
# most, for a module may itself ask for another while it loads.
mkdir -p /sbin
cat >/sbin/modprobe <<'SCRIPT'
#!/bin/busybox sh
/bin/busybox modprobe "$@"
code=$?
tries=100
while [ $tries -gt 0 ] && grep -q ' Loading ' /proc/modules; do
  usleep 10000
  tries=$((tries - 1))
done
exit $code
SCRIPT
chmod 755 /sbin/modprobe
# A node is prepared so (kubeadm asks for it): without it bridged pods escape the rules of Services.
modprobe br_netfilter
# Its parameters are set by a first turn, which an agent repeats once its rules have loaded it.
modprobe nf_conntrack
# The modules of tunnels put links of theirs into each new namespace, where tests count links.
echo 1 >/proc/sys/net/core/fb_tunnels_only_for_init_net
ip link set lo up

# NAME DIRECTORY DEADLINE_S PROGRAM [ARGUMENT ...]
run() {
  echo "@@begin $1"
  cd "$2"
  name=$1 deadline_s=$3
  shift 3
  timeout -s KILL "$deadline_s" "$@"
  echo "@@end $name $?"
}
. /tests.sh
echo "@@off"
poweroff -f
