"""Which settings systemd knows in the sections that a pod file passes on: it silently ignores those that it does not.

The names are those of systemd 252 ('systemd --dump-configuration-items') and a few newer ones. Values are looked at
where a mistake is common: yes and no, names of units, words from a list. ``systemd-analyze verify`` knows the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile

from podrun.options import unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_UNIT = """
    After AllowIsolate AssertACPower AssertArchitecture AssertCPUFeature AssertCPUPressure AssertCPUs
    AssertCapability AssertControlGroupController AssertCredential AssertDirectoryNotEmpty AssertEnvironment
    AssertFileIsExecutable AssertFileNotEmpty AssertFirstBoot AssertGroup AssertHost AssertIOPressure
    AssertKernelCommandLine AssertKernelVersion AssertMemory AssertMemoryPressure AssertNeedsUpdate
    AssertOSRelease AssertPathExists AssertPathExistsGlob AssertPathIsDirectory AssertPathIsEncrypted
    AssertPathIsMountPoint AssertPathIsReadWrite AssertPathIsSymbolicLink AssertSecurity AssertUser
    AssertVirtualization Before BindTo BindsTo CollectMode ConditionACPower ConditionArchitecture
    ConditionCPUFeature ConditionCPUPressure ConditionCPUs ConditionCapability ConditionControlGroupController
    ConditionCredential ConditionDirectoryNotEmpty ConditionEnvironment ConditionFileIsExecutable
    ConditionFileNotEmpty ConditionFirmware ConditionFirstBoot ConditionGroup ConditionHost ConditionIOPressure
    ConditionKernelCommandLine ConditionKernelVersion ConditionMemory ConditionMemoryPressure
    ConditionNeedsUpdate ConditionOSRelease ConditionPathExists ConditionPathExistsGlob ConditionPathIsDirectory
    ConditionPathIsEncrypted ConditionPathIsMountPoint ConditionPathIsReadWrite ConditionPathIsSymbolicLink
    ConditionSecurity ConditionUser ConditionVirtualization Conflicts DefaultDependencies Description
    Documentation FailureAction FailureActionExitStatus IgnoreOnIsolate JobRunningTimeoutSec JobTimeoutAction
    JobTimeoutRebootArgument JobTimeoutSec JoinsNamespaceOf OnFailure OnFailureIsolate OnFailureJobMode
    OnSuccess OnSuccessJobMode PartOf PropagateReloadFrom PropagateReloadTo PropagatesReloadTo PropagatesStopTo
    RebootArgument RefuseManualStart RefuseManualStop ReloadPropagatedFrom Requires RequiresMountsFor
    RequiresOverridable Requisite RequisiteOverridable SourcePath StartLimitAction StartLimitBurst
    StartLimitInterval StartLimitIntervalSec StopPropagatedFrom StopWhenUnneeded SuccessAction
    SuccessActionExitStatus SurviveFinalKillSignal Upholds Wants
""".split()
_SERVICE = """
    BusName ExecCondition ExecReload ExecStart ExecStop ExitType FailureAction FileDescriptorStoreMax
    FileDescriptorStorePreserve GuessMainPID NonBlocking NotifyAccess OOMPolicy OpenFile PIDFile
    PermissionsStartOnly RebootArgument ReloadSignal RemainAfterExit Restart RestartForceExitStatus
    RestartMaxDelaySec RestartMode RestartPreventExitStatus RestartSec RestartSteps RootDirectoryStartOnly
    RuntimeMaxSec RuntimeRandomizedExtraSec Sockets StartLimitAction StartLimitBurst StartLimitInterval
    SuccessExitStatus TimeoutAbortSec TimeoutStartFailureMode TimeoutStartSec TimeoutStopFailureMode
    TimeoutStopSec Type USBFunctionDescriptors USBFunctionStrings WatchdogSec
""".split()
_SOCKET = """
    Accept Backlog BindIPv6Only BindToDevice Broadcast DeferAcceptSec DirectoryMode ExecStopPre
    FileDescriptorName FlushPending FreeBind IPTOS IPTTL KeepAlive KeepAliveIntervalSec KeepAliveProbes
    KeepAliveTimeSec ListenDatagram ListenFIFO ListenMessageQueue ListenNetlink ListenSequentialPacket
    ListenSpecial ListenStream ListenUSBFunction Mark MaxConnections MaxConnectionsPerSource
    MessageQueueMaxMessages MessageQueueMessageSize NoDelay PassCredentials PassPacketInfo PassSecurity PipeSize
    Priority ReceiveBuffer RemoveOnStop ReusePort SELinuxContextFromNet SendBuffer Service SmackLabel
    SmackLabelIPIn SmackLabelIPOut SocketGroup SocketMode SocketProtocol SocketUser Symlinks TCPCongestion
    Timestamping Transparent TriggerLimitBurst TriggerLimitIntervalSec Writable
""".split()
_TIMER = """
    AccuracySec DeferReactivation FixedRandomDelay OnActiveSec OnBootSec OnCalendar OnClockChange OnStartupSec
    OnTimezoneChange OnUnitActiveSec OnUnitInactiveSec Persistent RandomizedDelaySec RandomizedOffsetSec
    RemainAfterElapse Unit WakeSystem
""".split()
#: Of everything that runs processes (systemd.exec(5), systemd.kill(5), systemd.resource-control(5)).
_PROCESSES = """
    AllowedCPUs AllowedMemoryNodes AmbientCapabilities AppArmorProfile BPFProgram BindPaths BindReadOnlyPaths
    BlockIOAccounting BlockIODeviceWeight BlockIOReadBandwidth BlockIOWeight BlockIOWriteBandwidth CPUAccounting
    CPUAffinity CPUQuota CPUQuotaPeriodSec CPUSchedulingPolicy CPUSchedulingPriority CPUSchedulingResetOnFork
    CPUShares CPUWeight CacheDirectory CacheDirectoryMode CapabilityBoundingSet ConfigurationDirectory
    ConfigurationDirectoryMode CoredumpFilter DefaultMemoryLow DefaultMemoryMin Delegate DeviceAllow
    DevicePolicy DisableControllers DynamicUser Environment EnvironmentFile ExecPaths ExecSearchPath
    ExecStartPost ExecStartPre ExecStopPost ExtensionDirectories ExtensionImages FinalKillSignal Group
    IOAccounting IODeviceLatencyTargetSec IODeviceWeight IOReadBandwidthMax IOReadIOPSMax IOSchedulingClass
    IOSchedulingPriority IOWeight IOWriteBandwidthMax IOWriteIOPSMax IPAccounting IPAddressAllow IPAddressDeny
    IPCNamespacePath IPEgressFilterPath IPIngressFilterPath IgnoreSIGPIPE ImportCredential
    InaccessibleDirectories InaccessiblePaths KeyringMode KillMode KillSignal LimitAS LimitCORE LimitCPU
    LimitDATA LimitFSIZE LimitLOCKS LimitMEMLOCK LimitMSGQUEUE LimitNICE LimitNOFILE LimitNPROC LimitRSS
    LimitRTPRIO LimitRTTIME LimitSIGPENDING LimitSTACK LoadCredential LoadCredentialEncrypted LockPersonality
    LogExtraFields LogLevelMax LogNamespace LogRateLimitBurst LogRateLimitIntervalSec LogsDirectory
    LogsDirectoryMode ManagedOOMMemoryPressure ManagedOOMMemoryPressureLimit ManagedOOMPreference ManagedOOMSwap
    MemoryAccounting MemoryDenyWriteExecute MemoryHigh MemoryKSM MemoryLimit MemoryLow MemoryMax MemoryMin
    MemoryPressureThresholdSec MemoryPressureWatch MemorySwapMax MemoryZSwapMax MountAPIVFS MountFlags
    MountImages NUMAMask NUMAPolicy NetworkNamespacePath Nice NoExecPaths NoNewPrivileges OOMScoreAdjust PAMName
    PassEnvironment Personality PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivatePIDs PrivateTmp
    PrivateUsers ProcSubset ProtectClock ProtectControlGroups ProtectControlGroupsEx ProtectHome ProtectHostname
    ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyDirectories
    ReadOnlyPaths ReadWriteDirectories ReadWritePaths RemoveIPC RestartKillSignal RestrictAddressFamilies
    RestrictFileSystems RestrictNamespaces RestrictNetworkInterfaces RestrictRealtime RestrictSUIDSGID
    RootDirectory RootEphemeral RootHash RootHashSignature RootImage RootImageOptions RootVerity
    RuntimeDirectory RuntimeDirectoryMode RuntimeDirectoryPreserve SELinuxContext SecureBits SendSIGHUP
    SendSIGKILL SetCredential SetCredentialEncrypted SetLoginEnvironment Slice SmackProcessLabel SocketBindAllow
    SocketBindDeny StandardError StandardInput StandardInputData StandardInputText StandardOutput
    StartupAllowedCPUs StartupAllowedMemoryNodes StartupBlockIOWeight StartupCPUShares StartupCPUWeight
    StartupIOWeight StateDirectory StateDirectoryMode SupplementaryGroups SyslogFacility SyslogIdentifier
    SyslogLevel SyslogLevelPrefix SystemCallArchitectures SystemCallErrorNumber SystemCallFilter SystemCallLog
    TTYColumns TTYPath TTYReset TTYRows TTYVHangup TTYVTDisallocate TasksAccounting TasksMax TemporaryFileSystem
    TimeoutCleanSec TimeoutSec TimerSlackNSec UMask UnsetEnvironment User UtmpIdentifier UtmpMode WatchdogSignal
    WorkingDirectory
""".split()
_INSTALL = """
    Alias Also DefaultInstance RequiredBy WantedBy
""".split()
KNOWN = {
    "unit": frozenset(_UNIT),
    "service": frozenset([*_SERVICE, *_PROCESSES]),
    "socket": frozenset([*_SOCKET, *_PROCESSES]),
    "timer": frozenset(_TIMER),
    "install": frozenset(_INSTALL),
}

_BOOLEAN = frozenset(
    """
    Accept AllowIsolate BlockIOAccounting Broadcast CPUAccounting CPUSchedulingResetOnFork DefaultDependencies
    DynamicUser FixedRandomDelay FlushPending FreeBind GuessMainPID IOAccounting IPAccounting IgnoreOnIsolate
    IgnoreSIGPIPE KeepAlive LockPersonality MemoryAccounting MemoryDenyWriteExecute NoDelay NoNewPrivileges
    NonBlocking OnClockChange OnFailureIsolate OnTimezoneChange PassCredentials PassPacketInfo PassSecurity
    PermissionsStartOnly Persistent PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivateTmp
    PrivateUsers ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules
    ProtectKernelTunables RefuseManualStart RefuseManualStop RemainAfterElapse RemainAfterExit RemoveIPC
    RemoveOnStop RestrictRealtime RestrictSUIDSGID ReusePort RootDirectoryStartOnly SELinuxContextFromNet
    SendSIGHUP SendSIGKILL StopWhenUnneeded SyslogLevelPrefix TTYReset TTYVHangup TTYVTDisallocate
    TasksAccounting Transparent WakeSystem Writable
""".split()
)
_YES_NO = frozenset("1 yes y true t on 0 no n false f off".split())
#: Settings whose words are names of units.
_UNITS = frozenset(
    """
    After Before BindTo BindsTo Conflicts JoinsNamespaceOf OnFailure OnSuccess PartOf PropagateReloadFrom
    PropagateReloadTo PropagatesReloadTo PropagatesStopTo ReloadPropagatedFrom Requires Requisite
    StopPropagatedFrom Upholds Wants WantedBy RequiredBy Also UpheldBy
""".split()
)
_TYPES = ("service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope")
_WORDS = {
    "Restart": "no on-success on-failure on-abnormal on-watchdog on-abort always",
    "Type": "simple exec forking oneshot dbus notify notify-reload idle",
    "KillMode": "control-group mixed process none",
    "NotifyAccess": "none main exec all",
    "OOMPolicy": "continue stop kill",
    "DevicePolicy": "auto closed strict",
    "TimeoutStartFailureMode": "terminate abort kill",
    "TimeoutStopFailureMode": "terminate abort kill",
    "ExitType": "main cgroup",
}
_ACTIONS = frozenset("StartLimitAction FailureAction SuccessAction JobTimeoutAction".split())
_ACTION_WORDS = (
    "none reboot reboot-force reboot-immediate poweroff poweroff-force poweroff-immediate exit exit-force "
    "soft-reboot soft-reboot-force kexec kexec-force halt halt-force halt-immediate"
)


def problems(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What systemd would ignore in the sections that a pod file passes on: (section, key, what is wrong)."""
    for section, known in KNOWN.items():
        for table in _tables(section, sections.get(section, {})):
            for key, value in table.items():
                if key not in known:
                    near = next((name for name in known if name.lower() == key.lower()), "")
                    elsewhere = next((name for name, keys in KNOWN.items() if key in keys), "")
                    if near:
                        yield section, key, f"systemd has no setting {key!r} here; did you mean {near!r}?"
                    elif elsewhere:
                        yield section, key, f"{key} belongs in [{elsewhere}]; systemd ignores it here"
                    else:
                        said = unknown(key, sorted(known), "setting of systemd's").partition(" (known")[0]
                        yield section, key, f"{said}; systemd ignores it"
                    continue
                for item in value if type(value) is list else [value]:
                    if what := _wrong(section, key, item):
                        yield section, key, what


def _tables(section: str, value: Any) -> list[dict[str, Any]]:
    """The one table, or the several of [[socket]], which are numbered."""
    several = section == "socket" and value and all(key.isdigit() for key in value)
    return list(value.values()) if several else [value]


def _wrong(section: str, key: str, value: Any) -> str:
    text = ("yes" if value else "no") if type(value) is bool else str(value)
    if not text or "%" in text or "${" in text:
        return ""
    if section == "socket" and key == "Accept" and text.lower() in ("1", "yes", "y", "true", "t", "on"):
        return "Accept=yes starts an instance for each connection: a pod takes the sockets themselves"
    if key in _BOOLEAN and text.lower() not in _YES_NO:
        return f"{key} takes yes or no, not {text!r}"
    words = _WORDS.get(key) or (_ACTION_WORDS if key in _ACTIONS else "")
    if words and text not in words.split():
        return unknown(text, words.split(), f"word for {key}")
    if key in _UNITS:
        for word in text.split():
            if word.rpartition(".")[2] not in _TYPES:
                return f"{key}: {word!r} is not the name of a unit; did you mean '{word}.service'?"
    return ""


def verified(texts: Mapping[str, str]) -> list[str]:
    """What ``systemd-analyze verify`` says of units (names and texts); nothing where there is no such program."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return []
    with tempfile.TemporaryDirectory(prefix="podrun-") as directory:
        for name, text in texts.items():
            with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        paths = [f"{directory}/{name}" for name in texts if "@." not in name]
        argv = [program, "verify", "--man=no", "--generators=no", "--recursive-errors=no", *paths]
        environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:"}
        try:
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=20, env=environ)
        except subprocess.TimeoutExpired:
            return []
        told = re.findall(rf"^{re.escape(directory)}/([^:\n]+):\d+: (.*)$", done.stderr, re.MULTILINE)
        return list(dict.fromkeys(f"{name}: {what}" for name, what in told))
