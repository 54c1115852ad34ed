import { describe, expect, it } from "vitest";
import {
  parseBriefStatus,
  parseStatus,
  readBriefStatus,
  readStatus,
  readStatusIfAlive,
  readThreadStatus,
} from "./status.ts";

const LINUX_6_18 = `Name:	a\\nb\\\\c 
Umask:	0027
State:	T (stopped)
Tgid:	4373
Ngid:	0
Pid:	4374
PPid:	4370
TracerPid:	99
Uid:	1000	1001	1002	1003
Gid:	4294967295	11	12	13
FDSize:	256
Groups:	4 24 1000 
NStgid:	4373	7	1
NSpid:	4374	8	2
NSpgid:	4370	0	0
NSsid:	2697	0	0
Kthread:	0
VmPeak:	    3060 kB
VmSize:	    3050 kB
VmLck:	       1 kB
VmPin:	       2 kB
VmHWM:	    1656 kB
VmRSS:	    1640 kB
RssAnon:	     116 kB
RssFile:	    1540 kB
RssShmem:	       3 kB
VmData:	     360 kB
VmStk:	     132 kB
VmExe:	      20 kB
VmLib:	    1528 kB
VmPTE:	      52 kB
VmSwap:	       4 kB
HugetlbPages:	       5 kB
CoreDumping:	0
THP_enabled:	1
untag_mask:	0xffffffffffffffff
Threads:	2
SigQ:	3/96365
SigPnd:	0000000000000200
ShdPnd:	0000000000004000
SigBlk:	fffffffe7ffbfeff
SigIgn:	0000000000001000
SigCgt:	0000000188004a02
CapInh:	0000000000000001
CapPrm:	000001fffeffffff
CapEff:	000001fffefffff0
CapBnd:	000001ffffffffff
CapAmb:	0000000000000002
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	3
Speculation_Store_Bypass:	thread force mitigated
SpeculationIndirectBranch:	always enabled
Cpus_allowed:	3
Cpus_allowed_list:	0-1
Mems_allowed:	00000001
Mems_allowed_list:	0
voluntary_ctxt_switches:	0
nonvoluntary_ctxt_switches:	0
`;

/** A zombie on Linux 4.19: no umask, no memory, no ids in other namespaces but its own. */
const ZOMBIE_4_19 = `Name:	sh
State:	Z (zombie)
Tgid:	12
Ngid:	0
Pid:	12
PPid:	1
TracerPid:	0
Uid:	0	0	0	0
Gid:	0	0	0	0
FDSize:	0
Groups:	 
NStgid:	12
NSpid:	12
NSpgid:	12
NSsid:	12
Threads:	1
SigQ:	0/7863
SigPnd:	0000000000000000
NoNewPrivs:	0
`;

describe("parseStatus()", () => {
  it("reads every field", () => {
    expect(parseStatus(LINUX_6_18)).toStrictEqual({
      name: "a\nb\\c ",
      umask: 0o27,
      state: "T",
      tgid: 4373,
      pid: 4374,
      ppid: 4370,
      tracerPid: 99,
      uid: { real: 1000, effective: 1001, saved: 1002, fs: 1003 },
      gid: { real: 4294967295, effective: 11, saved: 12, fs: 13 },
      fdSize: 256,
      groups: [4, 24, 1000],
      nsTgid: [4373, 7, 1],
      nsPid: [4374, 8, 2],
      nsPgid: [4370, 0, 0],
      nsSid: [2697, 0, 0],
      kthread: false,
      threads: 2,
      sigQueued: 3,
      sigQueueLimit: 96365,
      sigPnd: 0x200n,
      shdPnd: 0x4000n,
      sigBlk: 0xfffffffe7ffbfeffn,
      sigIgn: 0x1000n,
      sigCgt: 0x188004a02n,
      capInh: 1n,
      capPrm: 0x1fffeffffffn,
      capEff: 0x1fffefffff0n,
      capBnd: 0x1ffffffffffn,
      capAmb: 2n,
      noNewPrivs: true,
      seccomp: 2,
      seccompFilters: 3,
      speculationStoreBypass: "thread force mitigated",
      speculationIndirectBranch: "always enabled",
      memory: {
        vmPeak: 3060,
        vmSize: 3050,
        vmLck: 1,
        vmPin: 2,
        vmHwm: 1656,
        vmRss: 1640,
        rssAnon: 116,
        rssFile: 1540,
        rssShmem: 3,
        vmData: 360,
        vmStk: 132,
        vmExe: 20,
        vmLib: 1528,
        vmPte: 52,
        vmSwap: 4,
        hugetlbPages: 5,
      },
      coreDumping: false,
      thpEnabled: true,
      cpusAllowedList: "0-1",
      memsAllowedList: "0",
    });
  });

  it("leaves undefined what a zombie of an older kernel does not tell", () => {
    const status = parseStatus(ZOMBIE_4_19);
    expect(status).toMatchObject({ name: "sh", state: "Z", pid: 12, groups: [], nsPid: [12] });
    expect(status.umask).toBeUndefined();
    expect(status.seccomp).toBeUndefined();
    expect(status.seccompFilters).toBeUndefined();
    expect(status.kthread).toBeUndefined();
    expect(status.memory.vmRss).toBeUndefined();
  });
});

describe("parseBriefStatus()", () => {
  // Each text comes after one that differs from it in a single line of another part.
  const texts = [
    LINUX_6_18,
    LINUX_6_18.replace("Name:\ta", "Name:\tUid: 7 "),
    LINUX_6_18.replace("1001", "1005"),
    LINUX_6_18.replace("Groups:\t4 24", "Groups:\t5 24"),
    LINUX_6_18.replace("Pid:\t4374", "Pid:\t4375"),
    LINUX_6_18.replace("4374\t8\t2", "4374\t8\t3"),
    LINUX_6_18.replace("SigQ:\t3", "SigQ:\t4"),
    LINUX_6_18.replace("SigPnd:\t0", "SigPnd:\t8"),
    LINUX_6_18.replace("CapEff:\t0", "CapEff:\t1"),
    LINUX_6_18.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
    LINUX_6_18.replace("Seccomp:\t2", "Seccomp:\t0"),
    LINUX_6_18.replace(/^Seccomp(_filters)?:.*\n/gm, ""),
    LINUX_6_18.replace(/^Spec.*\n/gm, ""),
    LINUX_6_18.replace(/^(Groups|NSpid|Umask):.*\n/gm, ""),
    LINUX_6_18,
  ];

  it("says the same as parseStatus(), whatever came before", () => {
    for (const text of texts) {
      expect(parseStatus(text)).toMatchObject(parseBriefStatus(text));
      expect(Object.keys(parseBriefStatus(text))).toHaveLength(19);
    }
  });

  it("reads a thread", () => {
    const whole = readThreadStatus(process.pid, process.pid);
    expect(whole).toMatchObject(readBriefStatus(process.pid, process.pid));
  });
});

describe("readStatus()", () => {
  it("reads this process and its first thread", () => {
    const status = readStatus(process.pid);
    expect(status).toMatchObject({ pid: process.pid, tgid: process.pid, ppid: process.ppid });
    expect(status.uid.real).toBe(process.getuid?.());
    expect(status.nsPid[0]).toBe(process.pid);
    expect(status.memory.vmRss).toBeGreaterThan(1000);
    expect(readThreadStatus(process.pid, process.pid).sigCgt).toBe(status.sigCgt);
  });

  it("is undefined for a process that is not there", () => {
    expect(readStatusIfAlive(2 ** 30)).toBeUndefined();
  });
});
