"""Words of compose files and of docker's command line, and what they are in a pod file."""

from __future__ import annotations

_NETWORK = "an option of the network step"
_VOLUMES = "podrun's word is volumes, or a storage step"
_RESTART = 'podrun leaves that to systemd: [service] Restart = "on-failure"'
_COPIES = "podrun's way is a template, web@.toml, and an instance for each"
_READ_ONLY = 'in a storage step it is options = ["ro"], and a container has read_only'
FOREIGN = {
    "ports": f"podrun's word is publish, {_NETWORK}",
    "port": f"podrun's word is publish, {_NETWORK}",
    "expose": "containers of a pod network reach every port: leave it out",
    "environment": "podrun's word is env",
    "env_file": "podrun's word is env_files",
    "healthcheck": "podrun's words are ready (when it counts as started) and live (what it has to answer to)",
    "health_cmd": "podrun's words are ready and live, with exec = [...]",
    "restart": _RESTART,
    "restart_policy": _RESTART,
    "depends_on": "the chain is the order within a pod; on other pods: [pod] requires = [...], after = [...]",
    "mounts": _VOLUMES,
    "mount": _VOLUMES,
    "volume": _VOLUMES,
    "volumes_from": _VOLUMES,
    "networks": "podrun's way is a network step",
    "network": "podrun's way is a network step",
    "net": "podrun's way is a network step",
    "network_mode": f"podrun's word is mode, {_NETWORK}",
    "mac_address": f"podrun's word is mac, {_NETWORK}",
    "ip": f"podrun's word is address, {_NETWORK}",
    "ipv4_address": f"podrun's word is address, {_NETWORK}",
    "ipv6_address": f"podrun's word is address6, {_NETWORK}",
    "dns_search": f"podrun's word is search, {_NETWORK}",
    "dns_opt": f"podrun's word is dns_options, {_NETWORK}",
    "extra_hosts": f"podrun's word is hosts, {_NETWORK}",
    "add_host": f"podrun's word is hosts, {_NETWORK}",
    "links": f"pods of a bridge find each other by their names; more of them are aliases, {_NETWORK}",
    "external_links": f"pods of a bridge find each other by their names; more of them are aliases, {_NETWORK}",
    "domainname": f"podrun's word is hostname, {_NETWORK}, with the domain in it",
    "container_name": "podrun's word is name",
    "working_dir": "podrun's word is workdir",
    "mem_limit": "podrun's word is memory",
    "mem_reservation": "podrun's word is memory_reservation",
    "memswap_limit": "podrun's word is memory_swap",
    "cpu_limit": "podrun's word is cpus",
    "cpu_quota": "podrun's word is cpus",
    "cpu_period": "podrun's word is cpus",
    "cpu_count": "podrun's word is cpus",
    "cpuset_cpus": "podrun's word is cpuset",
    "pids_limit": "podrun's word is pids",
    "blkio_config": "podrun leaves that to systemd: [service] IOWeight = 100",
    "cgroup_parent": 'podrun leaves that to systemd: [service] Slice = "web.slice"',
    "oom_kill_disable": 'podrun leaves that to systemd: [service] OOMPolicy = "continue"',
    "stop_grace_period": "podrun's word is stop_timeout",
    "stdin_open": "podrun's word is interactive",
    "group_add": "podrun's word is groups",
    "userns_mode": "podrun's word is userns, a key of [pod]",
    "security_opt": "podrun's words are seccomp, apparmor, selinux and no_new_privileges",
    "device_cgroup_rules": "podrun's word is device_rules",
    "gpus": 'podrun\'s word is devices, with the names of CDI: devices = ["nvidia.com/gpu=all"]',
    "label": "podrun's word is labels",
    "ulimit": "podrun's word is ulimits",
    "sysctl": "podrun's word is sysctls",
    "cmd": "podrun's word is command",
    "args": "podrun's word is command",
    "logging": "podrun's word is log",
    "log_driver": "podrun's word is log",
    "log_opt": "podrun's words are log, log_size and log_files",
    "secrets": 'podrun\'s way is a storage step: source = "file:", secret = "NAME"',
    "configs": 'podrun\'s way is a storage step: source = "file:", content = "..."',
    "pull_policy": "podrun's word is pull, an option of the image step",
    "build": "podrun builds no images: build it elsewhere, then 'podrun load', or name its registry",
    "tag": "it is part of ref, the image step's",
    "deploy": _COPIES,
    "scale": _COPIES,
    "replicas": _COPIES,
    "profiles": "podrun's way is a pod file for each",
    "extends": "podrun's way are drop-ins: web.toml.d/10-more.toml",
    "post_start": 'podrun leaves that to systemd: [service] ExecStartPost = "..."; or a step after the container',
    "pre_stop": "podrun's way is a step after the container: its down comes before the container's",
    "detach": "it is how a pod is started: podrun up -d",
    "rm": "what a container has written goes with it, but for persist = true",
    "src": "podrun's word is source",
    "dst": "podrun's word is target",
    "dest": "podrun's word is target",
    "destination": "podrun's word is target",
    "readonly": _READ_ONLY,
    "read_only": _READ_ONLY,
    "ro": _READ_ONLY,
    "privileged": "podrun has no such switch: name what is needed in capabilities, devices and volumes",
    "services": "that is compose's: 'podrun convert compose FILE' makes pod files of it",
    "Container": "that is Quadlet's: 'podrun convert quadlet FILE' makes a pod file of it",
    "chain": "below [pod] it is a key of that table: put chain = [...] above [pod], or write [[chain]] tables",
}

#: The options of the steps that most pods have: a word of theirs elsewhere is in the wrong table.
OPTIONS = {
    "image": """
        ref pull platform verify
    """.split(),
    "network": """
        mode publish subnet subnet6 address address6 ipv6 gateway routes mac mtu interface sysctls dns search
        dns_options hosts hostname aliases bridge reuse_port
    """.split(),
    "storage": """
        source target options type content credential secret idmap
    """.split(),
    "container": """
        image command entrypoint env user workdir hostname read_only volumes tmpfs persist memory cpus pids
        memory_reservation memory_swap cpu_shares cpuset ulimits oom_score_adj shm_size devices device_rules
        groups ipc pid tz umask sysctls env_files no_new_privileges mask unmask capabilities cap_add cap_drop
        seccomp nested_userns apparmor selinux selinux_mount init ready live health stop_signal stop_timeout log
        log_size log_files interactive tty runtime annotations labels
    """.split(),
}


def hint(word: str) -> str:
    """What to write instead of a key that is not known where it stands; "" where that is not known."""
    if word in FOREIGN:
        return FOREIGN[word]
    steps = [step for step, options in OPTIONS.items() if word in options]
    return f"it is an option of the {' and the '.join(steps)} step" if steps else ""
