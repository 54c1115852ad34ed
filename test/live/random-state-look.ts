// What /proc tells of a tree, as facts with names, with that taken out which is another in each process: inodes of objects
// without a name become the order in which they are seen.

import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export type Facts = Map<string, string>;

export interface TreeThread {
  readonly pid: number;
  readonly tid: number;
  readonly state: string;
}

/** All threads of a process and what came from it, zombies too. */
export function treeOf(root: number): TreeThread[] {
  const found: TreeThread[] = [];
  const visit = (pid: number): void => {
    const tids = names(`/proc/${pid}/task`).map(Number);
    const children: number[] = [];
    for (const tid of tids) {
      const stat = text(`/proc/${pid}/task/${tid}/stat`);
      if (stat === "") continue;
      found.push({ pid, tid, state: stat[stat.lastIndexOf(")") + 2] ?? "?" });
      children.push(
        ...text(`/proc/${pid}/task/${tid}/children`).split(" ").filter(Boolean).map(Number),
      );
    }
    for (const child of children) visit(child);
  };
  visit(root);
  return found;
}

const PROCESS_TEXTS = [
  "limits",
  "oom_score_adj",
  "coredump_filter",
  "cmdline",
  "environ",
  "auxv",
  "loginuid",
  "sessionid",
  "autogroup",
  "setgroups",
  "uid_map",
  "gid_map",
  "timens_offsets",
];
const THREAD_TEXTS = ["comm", "personality", "cpuset"];
const THREAD_LINKS = [
  "cwd",
  "root",
  "exe",
  "ns/net",
  "ns/mnt",
  "ns/uts",
  "ns/ipc",
  "ns/user",
  "ns/pid",
  "ns/cgroup",
  "ns/time",
];
const STATUS_LEFT_OUT =
  /^(VmPeak|VmHWM|VmRSS|RssAnon|RssFile|RssShmem|VmPTE|VmSwap|FDSize|SigQ|voluntary_ctxt_switches|nonvoluntary_ctxt_switches|Pid|Tgid|State|Speculation_Store_Bypass|VmLib|VmExe)$/;
/** Fields of stat from the third on that stay: parent, group, session, terminal, its group, priority, nice, places, … */
const STAT_FIELDS: Readonly<Record<string, number>> = {
  parent: 1,
  group: 2,
  session: 3,
  terminal: 4,
  "terminal's group": 5,
  priority: 15,
  nice: 16,
  threads: 17,
  "start of code": 23,
  "end of code": 24,
  "start of stack": 25,
  "exit signal": 35,
  "real-time priority": 37,
  policy: 38,
  "start of data": 42,
  "end of data": 43,
  "start of break": 44,
  "start of arguments": 45,
  "end of arguments": 46,
  "start of environment": 47,
  "end of environment": 48,
  "exit code": 49,
};

/** Everything of a tree that /proc tells and that stays. */
export function lookAtProc(root: number): Facts {
  const facts: Facts = new Map();
  const numbers = new Numbers();
  const threads = treeOf(root).sort((one, other) => one.pid - other.pid || one.tid - other.tid);
  facts.set(
    "tree",
    threads
      .map(({ pid, tid, state }) => `${pid}/${tid}${state.replace(/[SD]/, "S")}`)
      .sort()
      .join(" "),
  );
  for (const { pid, tid, state } of threads)
    if (pid === tid) lookAtProcess(facts, { pid, state }, numbers);
  for (const { pid, tid, state } of threads) if (state !== "Z") lookAtThread(facts, { pid, tid });
  lookAtLocks(facts, new Set(threads.map(({ pid }) => pid)));
  return facts;
}

function lookAtProcess(
  facts: Facts,
  { pid, state }: { readonly pid: number; readonly state: string },
  numbers: Numbers,
): void {
  const put = (name: string, value: string): void => void facts.set(`${pid} ${name}`, value);
  for (const name of PROCESS_TEXTS) {
    const all = numbers.inText(text(`/proc/${pid}/${name}`), /(?<=^\/autogroup-)\d+/g);
    if (name === "limits" && state === "Z") continue;
    for (const [index, line] of all.trimEnd().split("\n").entries()) put(`${name} ${index}`, line);
  }
  put("timers", text(`/proc/${pid}/timers`));
  lookAtAreas(put, pid);
  for (const fd of names(`/proc/${pid}/fd`)) {
    // Of its names a deleted file has one afterwards, or another one where that has been taken; so has a queue.
    let target = link(`/proc/${pid}/fd/${fd}`).replace(/[^/]+(?= \(deleted\)$)/, "");
    // A thread that has ended is a process that has ended, afterwards.
    const dead = /^\/proc\/(\d+)\/task\/(\d+)(.*)$/.exec(target);
    if (dead !== null && names(`/proc/${dead[1]}/task/${dead[2]}`).length === 0)
      target = `a dead thread${dead[3]}`;
    put(`fd ${fd} link`, numbers.inText(target, /(?<=^(?:pipe|socket):\[)\d+/g));
    put(`fd ${fd} info`, infoOf(pid, fd));
  }
}

function infoOf(pid: number, fd: string): string {
  const info = text(`/proc/${pid}/fdinfo/${fd}`)
    .replace(/^mnt_id:.*\n/m, "")
    .replace(/^lock:.*\n/gm, "")
    // When it is read, one that repeats itself counts what it has missed.
    .replace(/^(ticks:) [1-9](?=[^]*it_interval: \([1-9])[^]*it_value: .*\n/m, "$1 some\n")
    .replace(/^(ticks: [1-9]\d*[^]*)it_value: .*\n/m, "$1")
    .replace(/^(clockid: [179]\n[^]*settime flags:) .*$/m, "$1")
    .replace(/^(settime flags:) .*(\n[^]*it_value: \(0, 0\))/m, "$1$2")
    .replace(/^(ticks:) [1-9]\d*(\n[^]*it_interval: \([1-9])/m, "$1 some$2")
    .replace(/^(ticks: [1-9]\d*\nsettime flags:) .*/m, "$1")
    .replace(
      /^it_value: \((\d+), \d+\)/m,
      (_all, seconds: string) => `it_value: ${Number(seconds) > 0 ? "some" : "none"}`,
    )
    .replace(/ sdev:\S+| ino:\S+| pos:\S+/g, "")
    .replace(/^scm_fds:.*\n/m, (line) => line);
  const lines = info
    .replace(/^(ino|eventfd-id):.*\n/gm, "")
    .replace(/(?<=^inotify wd:\d+ ino:)[\da-f]+/gm, "")
    .replace(
      /^flags:\t(\d+)/m,
      (_all, octal: string) => `flags: ${(parseInt(octal, 8) & ~0o20302000).toString(8)}`,
    )
    .split("\n");
  return lines.sort().join("; ");
}

/** Areas with what smaps tells of them but sizes in memory. Neighbours that only a past difference keeps apart count as one. */
function lookAtAreas(put: (name: string, value: string) => void, pid: number): void {
  interface Area {
    start: string;
    end: string;
    offset: number;
    readonly path: string;
    what: string;
  }
  const areas: Area[] = [];
  for (const line of text(`/proc/${pid}/smaps`).split("\n")) {
    const area = /^([\da-f]+)-([\da-f]+) (\S+) (\S+) (\S+) (\d+) *(.*)$/.exec(line);
    if (area !== null) {
      const [, start = "", end = "", permissions = "", offset = "", , , path = ""] = area;
      const name = path.replace(/SYSV\S+/, "SYSV").replace(/\.cr\.\d+\.ghost(?= \(deleted\))/, "");
      areas.push({
        start,
        end,
        offset: name.startsWith("/") ? parseInt(offset, 16) : -1,
        path: name,
        what: permissions,
      });
      continue;
    }
    const last = areas.at(-1);
    if (last === undefined) continue;
    // Accounted memory (ac) that cannot be written to was accounted when it could be.
    if (line.startsWith("VmFlags:"))
      last.what += line
        .slice(8)
        .replace(/ (sd|ac|gu)\b/g, "")
        .trimEnd();
    else if (/^(KernelPageSize|ProtectionKey):/.test(line))
      last.what += ` ${line.replace(/^.*: */, "")}`;
  }
  // Shared memory that can never be written to is the same with and without the mark of sharing.
  for (const area of areas)
    if (!/ mw\b/.test(area.what)) area.what = area.what.replace(/ sh\b/, "");
  // A private mapping of /dev/zero is anonymous memory.
  for (const [index, area] of areas.entries())
    if (area.path === "/dev/zero" && area.what[3] === "p")
      areas[index] = { ...area, path: "", offset: -1 };
  const merged: Area[] = [];
  for (const area of areas) {
    const last = merged.at(-1);
    const follows =
      last !== undefined &&
      last.end === area.start &&
      last.path === area.path &&
      last.what === area.what;
    const isNext =
      last !== undefined &&
      (area.offset === -1 ||
        last.offset + parseInt(last.end, 16) - parseInt(last.start, 16) === area.offset);
    if (follows && isNext) last.end = area.end;
    else merged.push({ ...area });
  }
  for (const { start, end, offset, path, what } of merged)
    put(`area ${start}-${end}`, `${offset} ${what} ${path}`);
}

function lookAtThread(
  facts: Facts,
  { pid, tid }: { readonly pid: number; readonly tid: number },
): void {
  const dir = `/proc/${pid}/task/${tid}`;
  const put = (name: string, value: string): void => void facts.set(`${pid}/${tid} ${name}`, value);
  for (const name of THREAD_TEXTS) put(name, text(`${dir}/${name}`).trimEnd());
  for (const name of THREAD_LINKS) put(name, link(`${dir}/${name}`));
  // What is begun anew with what is left of the time is another call.
  put(
    "syscall",
    text(`${dir}/syscall`)
      .trimEnd()
      .replace(/^(?:219|230|35|7|271|202|62|-1) .*/, "restarts"),
  );
  put("cgroup", text(`${dir}/cgroup`));
  put("label", text(`${dir}/attr/current`));
  const slack = text(`/proc/${tid}/timerslack_ns`).trimEnd();
  // What a real-time thread hands down, none, is nothing that anybody could ask for.
  put("timerslack", slack === "1" ? "0" : slack);
  for (const line of text(`${dir}/status`).split("\n")) {
    const [name = "", value = ""] = line.split(":\t");
    if (!STATUS_LEFT_OUT.test(name)) put(`status ${name}`, value);
  }
  const stat = text(`${dir}/stat`);
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .trim()
    .split(" ");
  for (const [name, index] of Object.entries(STAT_FIELDS)) put(`stat ${name}`, fields[index] ?? "");
  // SCHED_IDLE: the kernel keeps what it was asked for, without a use for it.
  if (fields[38] === "5") put("stat priority", "any");
}

function lookAtLocks(facts: Facts, pids: ReadonlySet<number>): void {
  const lines = text("/proc/locks").split("\n").filter(Boolean);
  const ours = lines
    .map((line) => line.replace(/^\d+: /, "").trim())
    .filter((line) => {
      const pid = / (-?\d+) [\da-f]+:[\da-f]+:\d+ /.exec(line)?.[1];
      return pid !== undefined && (pid === "-1" || pids.has(Number(pid)));
    });
  // OFD locks of others are in the list, too.
  facts.set(
    "locks",
    ours
      .filter((line) => !line.includes("OFDLCK"))
      .map((line) => line.replace(/:\d+ /, ": ").replace(/(?<=^FLOCK .*) \d+ (?=[\da-f]+:)/, " "))
      .sort()
      .join("; "),
  );
}

class Numbers {
  private readonly seen = new Map<string, number>();

  inText(all: string, pattern: RegExp): string {
    return all.replace(pattern, (one) => {
      if (!this.seen.has(one)) this.seen.set(one, this.seen.size + 1);
      return `#${this.seen.get(one)}`;
    });
  }
}

function text(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

function link(path: string): string {
  try {
    return readlinkSync(path, "latin1");
  } catch (error) {
    return String((error as NodeJS.ErrnoException).code);
  }
}

function names(path: string): string[] {
  try {
    return readdirSync(path).sort((one, other) => Number(one) - Number(other));
  } catch {
    return [];
  }
}
