// The criu command as it is typed: jobs of a shell with a terminal, and every option that decides what becomes of the tree
// or where things are written. Exit codes and the form of messages are what runtimes and scripts go by.

import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import {
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import {
  attachProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";
import { changeMachine } from "./inventory.ts";

const MAIN = join(import.meta.dirname, "../../src/criu/main.ts");
const COMMAND = [process.execPath, "--import", import.meta.resolve("tsx"), MAIN] as const;
const NO_SUCH_PID = "4194303";

let dir: string;
let images: string;
beforeEach(() => {
  dir = makeDir("cli");
  images = join(dir, "images");
  mkdirSync(images);
});
afterEach(() => removeDir(dir));

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Not spawnSync: it would keep us from reaping the programs that we started and criu ended. */
async function criu(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  { before = [] }: { readonly before?: readonly string[] } = {},
): Promise<Outcome> {
  const [program = "", ...rest] = [...before, ...COMMAND, ...args];
  const child = spawn(program, rest, {
    cwd: "/",
    env: { PATH: process.env["PATH"], HOME: dir, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 20_000,
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data: Buffer) => (stdout += data.toString()));
  child.stderr.on("data", (data: Buffer) => (stderr += data.toString()));
  // At "close" nobody holds the pipes any more: what was restored must not.
  const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { status, stdout, stderr };
}

const SILENCE: Outcome = { status: 0, stdout: "", stderr: "" };
const NOBODY = 65534;

/** Whether everybody can read a file. */
function isReachable(path: string): boolean {
  const mode = (at: string): number => statSync(at).mode;
  if ((mode(path) & 0o4) === 0) return false;
  for (let at = dirname(path); at !== "/"; at = dirname(at))
    if ((mode(at) & 0o1) === 0) return false;
  return true;
}

/** A program that keeps nothing in files, so that it can be dumped, go on, and be restored. */
async function quietProgram(): Promise<RunningProgram> {
  const program = await startProgram("heap_brk", [], { dir });
  onTestFinished(() => killProgram(program));
  await program.waitReady();
  return program;
}

/** The child of a process with a command line. */
function childOf(parent: number, command: string): number | undefined {
  const children = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").split(" ");
  return children
    .filter(Boolean)
    .map(Number)
    .find((pid) => {
      const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
      return line.split("\0").filter(Boolean).join(" ") === command;
    });
}

/** State letter of a process, and its session, group and terminal. */
function statOf(pid: number): { state: string; group: number; session: number; tty: number } {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  const words = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [state = "", , group, session, tty] = words;
  return { state, group: Number(group), session: Number(session), tty: Number(tty) };
}

async function until(what: string, isTrue: () => boolean): Promise<void> {
  for (const end = Date.now() + 20_000; !isTrue();) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(10);
  }
}

describe("criu dump and criu restore", () => {
  test("take a process away and bring it back, with logs and statistics in the work directory", async () => {
    const program = await quietProgram();
    const work = join(dir, "work");
    mkdirSync(work);
    const where = ["-D", images, "-W", work, "-v4"];
    const dumped = await criu(["dump", "-t", String(program.pid), ...where, "-o", "dump.log"]);
    expect(dumped).toEqual({ status: 0, stdout: "", stderr: "" });
    expect(existsSync(join(images, "dump.log"))).toBe(false);
    const log = readFileSync(join(work, "dump.log"), "utf8");
    expect(log).toMatch(/^\(\d\d\.\d{6}\) Version: 4\.2 /);
    expect(log).toMatch(/\(\d\d\.\d{6}\) Dumping finished successfully\n$/);
    const back = await criu(["restore", ...where, "-o", "restore.log", "-d", "--pidfile", "pid"]);
    expect(back).toEqual({ status: 0, stdout: "", stderr: "" });
    expect(readFileSync(join(work, "pid"), "utf8")).toBe(String(program.pid));
    for (const name of ["stats-dump", "stats-restore"]) {
      expect(existsSync(join(work, name))).toBe(true);
      expect(existsSync(join(images, name))).toBe(false);
    }
    const restored = attachProgram("heap_brk", program.pid, dir);
    expect(await restored.ask()).toMatch(/^ok/);
    expect(await restored.finish()).toBe("pass");
  });

  test("--log-pid writes a file for every process, with its calls", async () => {
    const program = await quietProgram();
    expect((await criu(["dump", "-t", `${program.pid}`, "-D", images])).status).toBe(0);
    const back = await criu(["restore", "-D", images, "-d", "-o", "log", "--log-pid"]);
    expect(back).toEqual({ status: 0, stdout: "", stderr: "" });
    const calls = readFileSync(join(images, `log.${program.pid}`), "utf8");
    expect(calls).toMatch(/^ {2}openat\(AT_FDCWD, ".*heap_brk", .*\) = \d+ {2}# open /m);
    expect(calls).toMatch(/^ {2}capset\(.*\) = 0 {2}# set the capabilities$/m);
    expect(await attachProgram("heap_brk", program.pid, dir).ask()).toMatch(/^ok/);
  });

  // Only who can reach the sources can run them.
  test.runIf(isReachable(MAIN))(
    "a user with CAP_CHECKPOINT_RESTORE alone saves and restores his own",
    async () => {
      for (const path of [dir, images]) chownSync(path, NOBODY, NOBODY);
      const program = await startProgram("threads", [], { dir, user: NOBODY });
      onTestFinished(() => killProgram(program));
      await program.waitReady();
      chownSync(program.outFile, NOBODY, NOBODY);
      const user = `${NOBODY}`;
      const caps = "+checkpoint_restore";
      const before = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
      const asUser = { before: [...before, "--inh-caps", caps, "--ambient-caps", caps] };
      const rest = ["-D", images, "--unprivileged"];
      expect(await criu(["dump", "-t", `${program.pid}`, ...rest], {}, asUser)).toEqual(SILENCE);
      expect(await criu(["restore", "-d", ...rest], {}, asUser)).toEqual(SILENCE);
      const status = readFileSync(`/proc/${program.pid}/status`, "utf8");
      expect(status).toMatch(/^CapPrm:\t0+$/m);
      expect(await program.ask()).toBe("ok 1");
      // Somebody else's process is not his to save, and to become somebody else he may not.
      expect((await criu(["dump", "-t", "1", ...rest], {}, asUser)).status).toBe(1);
      expect(await program.finish()).toBe("pass");
    },
  );

  test("without --restore-detached, criu stays until the process ends", async () => {
    const program = await quietProgram();
    expect((await criu(["dump", "-t", String(program.pid), "-D", images])).status).toBe(0);
    const [node, ...rest] = COMMAND;
    const child = spawn(node, [...rest, "restore", "-D", images], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (data: Buffer) => (stderr += data.toString()));
    const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
    const isBack = (): boolean => existsSync(`/proc/${program.pid}/exe`);
    await until("the process is back", () => isBack() || child.exitCode !== null);
    expect(stderr).toBe("");
    const restored = attachProgram("heap_brk", program.pid, dir);
    expect(await restored.ask()).toMatch(/^ok/);
    expect(child.exitCode).toBeNull();
    expect(await restored.finish()).toBe("pass");
    expect(await ended).toBe(0);
  });

  test("--leave-running lets it go on, and --display-stats tells the numbers", async () => {
    const program = await quietProgram();
    const { status, stdout } = await criu([
      "dump",
      "-t",
      String(program.pid),
      "-D",
      images,
      "-R",
      "--display-stats",
    ]);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^Displaying dump stats:\nFreezing time: \d+ us\n/);
    expect(stdout).toMatch(/^Memory pages written: \d+ \(0x[0-9a-f]+\)$/m);
    expect(await program.ask()).toMatch(/^ok/);
    await killProgram(program);
    const back = await criu(["restore", "-D", images, "-d", "--display-stats"]);
    expect(back.stdout).toMatch(/^Displaying restore stats:\n/);
    expect(back.stdout).toMatch(/^Pages restored: \d+ \(0x[0-9a-f]+\)$/m);
    expect(await attachProgram("heap_brk", program.pid, dir).ask()).toMatch(/^ok/);
  });

  test("--leave-stopped stops it after a dump, and after a restore", async () => {
    const program = await quietProgram();
    const { pid } = program;
    expect((await criu(["dump", "-t", String(pid), "-D", images, "--leave-stopped"])).status).toBe(
      0,
    );
    expect(statOf(pid).state).toBe("T");
    process.kill(pid, "SIGCONT");
    expect(await program.ask()).toMatch(/^ok/);
    await killProgram(program);
    expect((await criu(["restore", "-D", images, "-d", "--leave-stopped"])).status).toBe(0);
    expect(statOf(pid).state).toBe("T");
    process.kill(pid, "SIGCONT");
    expect(await attachProgram("heap_brk", pid, dir).ask()).toMatch(/^ok/);
  });

  test.each([
    ["page-server", "--address", "127.0.0.1", "--port", "0"],
    ["lazy-pages"],
    ["service", "--address", "service.socket"],
  ])("--action-script runs when %s is ready, and a failing one ends it", async (...words) => {
    // A daemon for memory looks for it first.
    if (words[0] === "lazy-pages") {
      const { pid } = await quietProgram();
      expect((await criu(["dump", "-t", `${pid}`, "-D", images])).status).toBe(0);
    }
    const script = join(dir, "script");
    const lines = [
      "#!/bin/sh",
      'echo "$CRTOOLS_SCRIPT_ACTION $(readlink $CRTOOLS_IMAGE_DIR)"',
      "exit 3",
    ];
    writeFileSync(script, `${lines.join("\n")}\n`, { mode: 0o755 });
    const { status, stdout, stderr } = await criu([
      ...words,
      "-D",
      images,
      "--action-script",
      script,
    ]);
    expect(stdout).toBe(`status-ready ${images}\n`);
    expect(stderr).toContain(`script ${script} failed at status-ready: exit 3`);
    expect(status).toBe(1);
  });

  test("--action-script runs at each step, and a failing one decides", async () => {
    const program = await quietProgram();
    const script = join(dir, "script");
    const out = join(dir, "steps");
    const lines = [
      "#!/bin/sh",
      `echo "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID $(readlink $CRTOOLS_IMAGE_DIR)" >>${out}`,
      '[ "$CRTOOLS_SCRIPT_ACTION" != "$FAIL_AT" ] || exit 3',
    ];
    writeFileSync(script, `${lines.join("\n")}\n`, { mode: 0o755 });
    const pid = String(program.pid);
    const dump = ["dump", "-t", pid, "-D", images, "--action-script", script];
    const back = ["restore", "-D", images, "-d", "--action-script", script];
    const early = await criu(dump, { FAIL_AT: "pre-dump" });
    expect(early.status).toBe(1);
    expect(early.stderr).toMatch(/Error \([^)]+\): Dumping FAILED\.\n$/);
    expect((await criu(dump, { FAIL_AT: "post-dump" })).status).toBe(3);
    expect(await program.ask()).toMatch(/^ok/);
    removeDir(images);
    mkdirSync(images);
    writeFileSync(out, "");
    expect((await criu(dump)).status).toBe(0);
    const failed = await criu(back, { FAIL_AT: "post-restore" });
    expect(failed.status).toBe(1);
    expect(failed.stderr).toMatch(/Error \([^)]+\): Restoring FAILED\.\n$/);
    await until("the failed restore is gone", () => !existsSync(`/proc/${pid}/exe`));
    expect((await criu(back)).status).toBe(0);
    expect(readFileSync(out, "utf8").trimEnd().split("\n")).toEqual([
      `pre-dump ${pid} ${images}`,
      `post-dump ${pid} ${images}`,
      `pre-restore  ${images}`,
      `post-restore ${pid} ${images}`,
      `pre-restore  ${images}`,
      `post-restore ${pid} ${images}`,
      `pre-resume ${pid} ${images}`,
      `post-resume ${pid} ${images}`,
    ]);
    expect(await attachProgram("heap_brk", program.pid, dir).ask()).toMatch(/^ok/);
  });
});

describe("a set of another machine", () => {
  /** A word of features and a bit that no processor but Xeon Phi has: AVX512_4VNNIW. */
  const [WORD, RARE] = [18, 1 << 2];

  test("restore warns of its kernel and processor, of the latter as --cpu-cap says", async () => {
    const program = await quietProgram();
    expect(await criu(["dump", "-t", String(program.pid), "-D", images])).toEqual(SILENCE);
    expect((await criu(["restore", "-D", images, "--explain"])).stderr).toBe("");
    changeMachine(images, ({ cpu }) => {
      if (cpu === undefined) throw new Error("no processor");
      const capability = cpu.capability.map((word, at) => (at === WORD ? word | RARE : word));
      return { kernel: "99.1.0", boot: "another", cpu: { ...cpu, model_id: "First", capability } };
    });
    const told = await criu(["restore", "-D", images, "--explain"]);
    expect(told.status).toBe(0);
    expect(told.stderr).toMatch(/^Warn .*: kernel \(saved: 99\.1\.0\): this is Linux/m);
    expect(told.stderr).toMatch(/^Warn .*: processor \(saved: First\): .*word 18, bits 2/m);
    const { stderr } = await criu(["restore", "-D", images, "--explain", "--cpu-cap=none"]);
    expect(stderr).toContain(": kernel (saved: 99.1.0)");
    expect(stderr).not.toContain(": processor ");
    const back = await criu(["restore", "-D", images, "-d"]);
    expect(back).toMatchObject({ status: 0, stderr: told.stderr });
    expect(await attachProgram("heap_brk", program.pid, dir).ask()).toMatch(/^ok/);
  });
});

describe("errors", () => {
  test.each([
    [["dump", "-D", "IMAGES"], "pid not specified"],
    [["dump", "-t", NO_SUCH_PID, "-D", "IMAGES"], `pid ${NO_SUCH_PID}: there is no such process`],
    [["dump", "-t", "OWN", "-D", "IMAGES"], "the engine itself runs in its tree"],
    [["dump", "-t", "1", "-D", "IMAGES/none"], "cannot open images directory"],
    [["restore", "-D", "IMAGES"], "cannot find image inventory.img"],
  ] as const)("criu %j says what is wrong", async (words, text) => {
    const own = String(process.pid);
    const args = words.map((word) => (word === "OWN" ? own : word.replace("IMAGES", images)));
    const { status, stdout, stderr } = await criu(args);
    expect(status).toBe(1);
    expect(stdout).toBe("");
    expect(stderr).toMatch(/^Error \([\w/.-]+:\d+\): /);
    expect(stderr).toContain(text);
  });

  test("a pid that is taken is named with its holder, and nothing is left behind", async () => {
    const program = await quietProgram();
    const { pid } = program;
    expect((await criu(["dump", "-t", String(pid), "-D", images, "-R"])).status).toBe(0);
    const { status, stderr } = await criu(["restore", "-D", images, "-d"]);
    expect(status).toBe(1);
    expect(stderr).toContain(
      `cannot restore pid ${pid}: the number is taken as process by pid ${pid} (heap_brk)`,
    );
    expect(stderr).toMatch(/Error \([^)]+\): Restoring FAILED\.\n$/);
    expect(await program.ask()).toMatch(/^ok/);
  });

  test("a job of a shell needs --shell-job, and goes on without it", async () => {
    const terminal = openTerminal("sh job.sh");
    await terminal.saw("job is ready");
    const { status, stderr } = await criu(["dump", "-t", String(jobPid()), "-D", images]);
    expect(status).toBe(1);
    expect(stderr).toContain("--shell-job");
    terminal.type("still");
    await terminal.saw("got: still");
    expect(existsSync(join(images, "inventory.img"))).toBe(false);
  });
});

describe("a job in a terminal", () => {
  test("goes on in the terminal of the restore, in its foreground", async () => {
    const first = openTerminal("sh -c 'set -m; sh job.sh'");
    await first.saw("job is ready");
    const pid = jobPid();
    first.type("one");
    await first.saw("got: one");
    const before = statOf(pid);
    const dump = ["dump", "-t", String(pid), "-D", images, "-j", "-v4", "-o", "dump.log"];
    expect(await criu(dump)).toEqual({ status: 0, stdout: "", stderr: "" });
    await first.ended;

    const restore = [...COMMAND, "restore", "-D", images, "-j", "-v4", "-o", "restore.log"];
    const second = openTerminal(`${restore.join(" ")}; echo "criu: $?"`);
    await until("the job is back", () => existsSync(`/proc/${pid}/exe`));
    second.type("two");
    await second.saw("got: two");
    const after = statOf(pid);
    expect(after.session).not.toBe(before.session);
    expect(after.tty).not.toBe(0);
    expect(after.group).toBe(pid);
    expect(readlinkSync(`/proc/${pid}/fd/0`)).toBe(readlinkSync(`/proc/${pid}/fd/1`));
    // The keyboard's signals come to the job, which is in the foreground.
    second.type("quit");
    await second.saw("criu: 0");
  });

  test("-d leaves it in the background of the shell that restored it", async () => {
    const steps = [
      "sh job.sh &",
      "while ! grep -q . job.pid; do sleep 0.02; done; sleep 0.1",
      `${COMMAND.join(" ")} dump -t $(cat job.pid) -D ${images} -j; echo "dump: $?"`,
      "wait",
      `${COMMAND.join(" ")} restore -D ${images} -d -j; echo "restore: $?"`,
      "kill -USR1 $(cat job.pid)",
      "read -r line",
    ];
    writeFileSync(join(dir, "steps.sh"), `${steps.join("\n")}\n`);
    const terminal = openTerminal("sh steps.sh");
    await terminal.saw("dump: 0");
    await terminal.saw("restore: 0");
    await terminal.saw("got a signal");
    const { tty } = statOf(jobPid());
    expect(tty).not.toBe(0);
    terminal.type("");
  });
});

interface Terminal {
  /** Waits until the terminal has shown a text. */
  saw(text: string): Promise<void>;
  type(line: string): void;
  readonly ended: Promise<void>;
}

/** Runs a command of a shell in a terminal of its own (script(1)), with job.sh at hand; all of it ends with the test. */
function openTerminal(command: string): Terminal {
  const job = [
    "trap 'echo got a signal' USR1",
    "echo $$ >job.pid",
    "echo job is ready",
    'while :; do read -r line && echo "got: $line"; [ "$line" = quit ] && exit 0; done',
  ];
  writeFileSync(join(dir, "job.sh"), `${job.join("\n")}\n`);
  const child: ChildProcessWithoutNullStreams = spawn("script", ["-qec", command, "/dev/null"], {
    cwd: dir,
  });
  let shown = "";
  child.stdout.on("data", (data: Buffer) => (shown += data.toString()));
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  onTestFinished(async () => {
    child.stdin.destroy();
    child.kill("SIGKILL");
    const pid = existsSync(join(dir, "job.pid")) ? jobPid() : child.pid;
    if (pid !== undefined) await killProgram(attachProgram("job", pid, dir));
  });
  return {
    ended,
    saw: async (text) => {
      try {
        await until(text, () => shown.includes(text));
      } catch {
        throw new Error(`the terminal did not show "${text}" but: ${shown}`);
      }
    },
    type: (line) => void child.stdin.write(`${line}\n`),
  };
}

function jobPid(): number {
  return Number(readFileSync(join(dir, "job.pid"), "utf8"));
}

describe("options of our own", () => {
  test("--explain prints what a dump would save and what a restore would do, and does neither", async () => {
    const program = await quietProgram();
    const where = ["-t", String(program.pid), "-D", images];
    const planned = await criu(["dump", ...where, "--explain"]);
    expect(planned).toMatchObject({ status: 0, stderr: "" });
    expect(planned.stdout).toMatch(new RegExp(`^task ${program.pid} heap_brk \\(alive\\)`));
    expect(existsSync(join(images, "inventory.img"))).toBe(false);
    expect(await program.ask()).toBe("ok 1");
    expect(await criu(["dump", ...where])).toEqual(SILENCE);
    const restored = await criu(["restore", "-D", images, "--explain"]);
    expect(restored).toMatchObject({ status: 0, stderr: "" });
    expect(restored.stdout).toMatch(new RegExp(`^task ${program.pid} heap_brk `, "m"));
    expect(existsSync(`/proc/${program.pid}/exe`)).toBe(false);
  });

  test("--strict refuses what would be lost with a warning", async () => {
    // Its input is a pipe whose other end is another process's.
    const shell = spawn("sh", ["-c", "sleep 60 | setsid sleep 61"], {
      detached: true,
      stdio: "ignore",
    });
    onTestFinished(() => void process.kill(-(shell.pid ?? 0), "SIGKILL"));
    const find = (): number | undefined => childOf(shell.pid ?? 0, "sleep 61");
    await expect.poll(find).toBeDefined();
    const reader = find() ?? 0;
    onTestFinished(() => void process.kill(reader, "SIGKILL"));
    const where = ["-t", String(reader), "-D", images, "-R"];
    const refused = await criu(["dump", ...where, "--strict"]);
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain("cannot dump without a loss: ");
    const told = await criu(["dump", ...where]);
    expect(told.status).toBe(0);
    expect(told.stderr).toContain("whoever has the other is not restored");
  });
});
