// The command `reprise` as a person meets it: the built executable, one process a command, in a home of its own.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, type Socket } from "node:net";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { afterEach, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { changeMachine } from "./inventory.ts";
import { readChildrenIfAlive } from "../../src/proc/children.ts";
import { compileProgram } from "./programs.ts";

const ROOT = join(import.meta.dirname, "..", "..");
const REPRISE = join(ROOT, "bin", "reprise");
/** Counts ten times a second, with a child process for each number. */
const LOOP = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.1; done";

let home: string;

beforeAll(() => {
  // The bundles must be those of this source.
  const build = spawnSync("npm", ["run", "--silent", "build:executables"], { cwd: ROOT });
  expect(build.status).toBe(0);
});

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "reprise-cli-"));
});

afterEach(() => {
  const names = existsSync(join(home, "tasks")) ? readdirSync(join(home, "tasks")) : [];
  for (const name of names) reprise("rm", "--force", name);
  rmSync(home, { recursive: true });
});

it("a task keeps its lock, a file that has another name only, and one without any", async () => {
  const script = [
    `cd ${home}`,
    "exec 3>locked && flock 3",
    "echo kept >a && exec 4<a && ln a b && rm a",
    "head -c 5000000 /dev/zero >c && exec 5<c && rm c",
    "while [ ! -e go ]; do sleep 0.05; done; cat <&4 >seen; wc -c <&5 >>seen",
  ].join("; ");
  reprise("run", "--name", "holder", "--", "sh", "-c", script);
  await vi.waitUntil(() => existsSync(join(home, "b")) && !existsSync(join(home, "c")));
  await setTimeout(300);
  expect(reprise("checkpoint", "holder")).toMatchObject({ status: 0, stderr: "" });
  expect(readdirSync(home).filter((name) => name.startsWith("link_remap"))).toEqual([]);
  expect(reprise("restore", "holder")).toMatchObject({ status: 0, stderr: "" });
  expect(spawnSync("flock", ["-n", join(home, "locked"), "true"]).status).toBe(1);
  writeFileSync(join(home, "go"), "");
  await vi.waitUntil(
    () =>
      existsSync(join(home, "seen")) &&
      readFileSync(join(home, "seen"), "utf8") === "kept\n5000000\n",
    { timeout: 10_000 },
  );
});

describe("a task with a TCP connection", () => {
  it("comes back with it; a clone has it closed", async () => {
    const program = compileProgram("tcp_echo");
    reprise("run", "--name", "echo", "--", "sh", "-c", `cd ${home} && exec ${program}`);
    const portFile = join(home, "port");
    await vi.waitUntil(() => existsSync(portFile), { timeout: 10_000, interval: 10 });
    const peer = connect(Number(readFileSync(portFile, "utf8")), "127.0.0.1");
    onTestFinished(() => void peer.destroy());
    await once(peer, "connect");
    expect(await echo(peer, "before")).toBe("before");
    expect(reprise("checkpoint", "echo")).toMatchObject({ status: 0, stderr: "" });
    expect(reprise("clone", "-c", "1", "echo", "second")).toMatchObject({ status: 0, stderr: "" });
    expect(reprise("rm", "--force", "second").status).toBe(0);
    expect(reprise("restore", "echo")).toMatchObject({ status: 0, stderr: "" });
    expect(await echo(peer, "after")).toBe("after");
  });

  async function echo(peer: Socket, text: string): Promise<string> {
    peer.write(text);
    const [data] = (await once(peer, "data", { signal: AbortSignal.timeout(15_000) })) as [Buffer];
    return data.toString();
  }
});

describe("help", () => {
  it("lists the commands, with an example and the exit codes", () => {
    const { status, stdout } = reprise("--help");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^ {2}checkpoint /m);
    expect(stdout).toMatch(/^Example:\n {2}reprise run /m);
    expect(stdout).toMatch(/^Exit codes: 0 done/m);
  });
});

describe("run, ps and logs", () => {
  it("start a task under a name, list it and show what it writes", async () => {
    const started = reprise("run", "--name", "looper", "--", "sh", "-c", LOOP);
    expect(started).toMatchObject({ status: 0, stderr: "" });
    const pid = Number(/^looper runs as pid (\d+)\n$/.exec(started.stdout)?.[1]);
    expect(readFileSync(`/proc/${pid}/comm`, "utf8")).toBe("sh\n");
    await counted("looper", 3);
    expect(reprise("logs", "looper").stdout).toMatch(/^0\n1\n2\n/);
    expect(reprise("logs", "-n", "1", "looper").stdout).toMatch(/^\d+\n$/);
    const [heading, line] = reprise("ps").stdout.split("\n");
    expect(heading).toMatch(/^NAME +PID +STATE +AGE +CHECKPOINTS +COMMAND$/);
    expect(line).toMatch(new RegExp(String.raw`^looper +${pid} +running +\d+ s +0 +sh -c 'i=0;`));
    expect(JSON.parse(reprise("ps", "--json").stdout)).toMatchObject([
      { name: "looper", pid, state: "running", checkpoints: 0 },
    ]);
  });

  it("run in pid, IPC and mount namespaces of their own, which end with them", async () => {
    const script = "sleep 60 & echo $$ $(cat /proc/$!/comm); wait";
    reprise("run", "--name", "apart", "--", "sh", "-c", script);
    await until(() => log("apart").includes("sleep\n"));
    const pid = pidOf("apart");
    const link = (kind: string, of: number): string => readlinkSync(`/proc/${of}/ns/${kind}`);
    for (const kind of ["pid", "ipc", "mnt"])
      expect(link(kind, pid)).not.toBe(link(kind, process.pid));
    for (const kind of ["net", "uts", "user"])
      expect(link(kind, pid)).toBe(link(kind, process.pid));
    expect(log("apart")).toMatch(new RegExp(`^${ownPidOf("apart")} sleep\n`));
    const [child = 0] = readChildrenIfAlive(pid) ?? [];
    process.kill(pid, "SIGTERM");
    await until(() => isGone(pid) && isGone(child));
    expect(reprise("ps").stdout).toMatch(/^apart +- +ended/m);
    expect(log("apart")).not.toContain("Terminated");
  });

  it("run among the host's processes when told to, and come back with their pids", async () => {
    expect(reprise("run", "--host", "--name", "looper", "--", "sh", "-c", LOOP).status).toBe(0);
    const pid = pidOf("looper");
    expect(namespaceOf("looper")).toBe(readlinkSync("/proc/self/ns/pid"));
    reprise("checkpoint", "looper");
    const restored = reprise("restore", "looper");
    expect(restored.stdout).toBe(`looper runs again as pid ${pid}, from checkpoint 1\n`);
    await counted("looper", numbers("looper").length + 2);
  });

  it("show the others when a record is damaged", () => {
    for (const name of ["a", "b"]) reprise("run", "--name", name, "--", "sleep", "60");
    process.kill(Number(/^a +(\d+)/m.exec(reprise("ps").stdout)?.[1]), "SIGKILL");
    writeFileSync(join(home, "tasks", "a", "state.json"), "{");
    const { status, stdout, stderr } = reprise("ps");
    expect(status).toBe(1);
    expect(stdout).toMatch(/^b +\d+ +running/m);
    expect(stderr).toMatch(/^error: cannot read .*a\/state\.json: it is damaged\n {2}\S/);
    expect(reprise("run", "--", "true").status).toBe(0);
    rmSync(join(home, "tasks", "a"), { recursive: true });
  });

  it("find a name for each of two commands at once", async () => {
    const program = join(home, "x".repeat(80));
    writeFileSync(program, "#!/bin/sh\nexec sleep 60\n", { mode: 0o700 });
    const started = await Promise.all([1, 2, 3].map(() => repriseLater("run", "--", program)));
    expect(started.map(({ status }) => status)).toEqual([0, 0, 0]);
    expect(reprise("ps").stdout.match(/ running /g)).toHaveLength(3);
  });

  it("number the program's name when it is taken", () => {
    reprise("run", "--", "sleep", "60");
    expect(reprise("run", "--", "sleep", "60").stdout).toMatch(/^sleep-2 runs as pid/);
  });

  it("follow the output until the task ends", async () => {
    reprise("run", "--name", "short", "--", "sh", "-c", "echo a; sleep 0.4; echo b");
    const { stdout, status } = reprise("logs", "--follow", "short");
    expect({ stdout, status }).toEqual({ stdout: "a\nb\n", status: 0 });
    expect(reprise("ps").stdout).toMatch(/^short +- +ended/m);
  });

  it("leave the caller's descriptors behind", async () => {
    const foreign = openSync(join(home, "foreign"), "w");
    const args = ["run", "--name", "clean", "--", "sleep", "60"];
    const stdio = ["ignore", "ignore", "ignore", foreign, foreign] as const;
    const { status } = spawnSync(REPRISE, args, { env: environment(), stdio: [...stdio] });
    closeSync(foreign);
    expect(status).toBe(0);
    expect(readdirSync(`/proc/${pidOf("clean")}/fd`)).toEqual(["0", "1", "2"]);
  });
});

describe("checkpoint and restore", () => {
  it("end a task and bring it back with its pid, where it was", async () => {
    await startLooper();
    const pid = pidOf("looper");
    const ownPid = ownPidOf("looper");
    const saved = reprise("checkpoint", "looper");
    expect(saved.stdout).toMatch(
      /^looper: checkpoint 1, [12] process(es)?, \d+ KB, frozen for [\d.]+ ms\nlooper has ended; bring it back: reprise restore looper\n$/,
    );
    const before = numbers("looper").length;
    expect(existsSync(`/proc/${pid}/fd/1`)).toBe(false);
    expect(reprise("ps").stdout).toMatch(/^looper +- +checkpointed +\d+ s +1 /m);
    const restored = reprise("restore", "looper");
    expect(restored.stdout).toMatch(/^looper runs again as pid \d+, from checkpoint 1\n$/);
    expect(ownPidOf("looper")).toBe(ownPid);
    await counted("looper", before + 3);
    proveCounting("looper", 0);
  });

  it("go round three times", async () => {
    await startLooper();
    for (let round = 1; round <= 3; round++) {
      expect(reprise("checkpoint", "looper").status).toBe(0);
      const before = numbers("looper").length;
      expect(reprise("restore", "looper").stdout).toContain(`from checkpoint ${round}\n`);
      await counted("looper", before + 2);
    }
    proveCounting("looper", 0);
    expect(reprise("ps").stdout).toMatch(/^looper +\d+ +running +\d+ s +3 /m);
  });

  it("leave the task running when told to, and go back to that moment after its end", async () => {
    await startLooper();
    const earliest = numbers("looper").length;
    const saved = reprise("checkpoint", "--leave-running", "looper");
    expect(saved.stdout).toMatch(/\nlooper runs on\n$/);
    const at = numbers("looper").length;
    await counted("looper", at + 3);
    proveCounting("looper", 0);
    process.kill(pidOf("looper"), "SIGKILL");
    await until(() => /^looper +- +ended/m.test(reprise("ps").stdout));
    const end = numbers("looper").length;
    expect(reprise("restore", "looper").status).toBe(0);
    await counted("looper", end + 3);
    const again = numbers("looper")[end] ?? -1;
    expect(again).toBeGreaterThanOrEqual(earliest);
    expect(again).toBeLessThanOrEqual(at);
  });

  it("go back to an older checkpoint", async () => {
    await startLooper();
    const earliest = numbers("looper").length;
    reprise("checkpoint", "--leave-running", "looper");
    const latest = numbers("looper").length;
    await counted("looper", latest + 5);
    reprise("checkpoint", "looper");
    const end = numbers("looper").length;
    expect(reprise("restore", "-c", "1", "looper").stdout).toContain("from checkpoint 1\n");
    await counted("looper", end + 1);
    const next = numbers("looper")[end];
    expect(next).toBeGreaterThanOrEqual(earliest);
    expect(next).toBeLessThanOrEqual(latest);
  });

  it("come back in a new pid namespace when the pids are taken", async () => {
    await startLooper();
    reprise("checkpoint", "looper");
    const before = numbers("looper").length;
    expect(reprise("restore", "--new-pids", "looper").status).toBe(0);
    await counted("looper", before + 2);
    proveCounting("looper", 0);
    const pid = pidOf("looper");
    expect(readFileSync(`/proc/${pid}/status`, "utf8")).toMatch(/^NSpid:\t\d+\t\d+$/m);
  });

  it("explain what they would do, and do nothing", async () => {
    await startLooper();
    expect(reprise("checkpoint", "--explain", "looper").stdout).toMatch(/^task \d+ sh \(alive\)/);
    expect(reprise("ps").stdout).toMatch(/^looper +\d+ +running +\d+ s +0 /m);
    await counted("looper", numbers("looper").length + 2);
    reprise("checkpoint", "looper");
    expect(reprise("restore", "--explain", "looper").stdout).toMatch(/^task \d+ sh \(made by/m);
    expect(reprise("ps").stdout).toMatch(/^looper +- +checkpointed/m);
  });
});

describe("clone", () => {
  it("makes tasks beside the first that count on, are saved again and brought back", async () => {
    await startLooper();
    const names = ["looper-clone", "second"];
    const starts = new Map<string, number>();
    for (const name of names) {
      const made = reprise("clone", "looper", name);
      expect(made.stdout).toMatch(new RegExp(`^${name} runs as pid \\d+, from checkpoint \\d`));
      await counted(name, 2);
      starts.set(name, numbers(name)[0] ?? -1);
    }
    const seen = numbers("looper").length;
    await counted("looper", seen + 2);
    for (const name of names) {
      expect(namespaceOf(name)).not.toBe(namespaceOf("looper"));
      for (let life = 0; life < 2; life++) {
        expect(reprise("checkpoint", name)).toMatchObject({ status: 0, stderr: "" });
        const before = numbers(name).length;
        expect(reprise("restore", name)).toMatchObject({ status: 0, stderr: "" });
        await counted(name, before + 2);
      }
      proveCounting(name, starts.get(name) ?? -1);
    }
    proveCounting("looper", 0);
    expect(reprise("ps").stdout.match(/ running /g)).toHaveLength(3);
  });

  it("sees the processes of its own namespace in /proc, and leaves none behind", async () => {
    const script = `while true; do cat /proc/$$/comm; sleep 0.1; done`;
    reprise("run", "--name", "looker", "--", "sh", "-c", script);
    await until(() => log("looker").includes("sh\nsh\n"));
    const mounts = readFileSync("/proc/self/mountinfo", "utf8");
    expect(reprise("clone", "looker", "inside").status).toBe(0);
    await until(() => log("inside").includes("sh\nsh\n"));
    expect(log("inside").replaceAll("sh\n", "")).toBe("");
    expect(readFileSync("/proc/self/mountinfo", "utf8")).toBe(mounts);
    const init = Number(/^PPid:\t(\d+)$/m.exec(statusOf("inside"))?.[1]);
    expect(readFileSync(`/proc/${init}/comm`, "utf8")).toBe("reprise-init\n");
    expect(readdirSync(`/proc/${init}/fd`)).toEqual([]);
    process.kill(pidOf("inside"), "SIGKILL");
    await until(() => isGone(init));
  });

  it("does not mind that the first task goes on to write into a file of both, and tells it", async () => {
    const data = join(home, "data");
    const script = `exec 5<>${data}; while true; do echo more >&5; sleep 0.005; done`;
    reprise("run", "--name", "writer", "--", "sh", "-c", script);
    await until(() => existsSync(data) && readFileSync(data).length > 50);
    for (const name of ["one", "two"]) {
      expect(reprise("clone", "writer", name)).toMatchObject({
        status: 0,
        stderr: `reprise: warning: writer and ${name} can both write into ${data}, which is there once.\n`,
      });
    }
  });

  it("starts from an older checkpoint of a task that has ended", async () => {
    await startLooper();
    reprise("checkpoint", "looper");
    const before = numbers("looper").length;
    expect(reprise("clone", "-c", "1", "looper", "other").status).toBe(0);
    await counted("other", 2);
    proveCounting("other", before);
    expect(reprise("ps").stdout).toMatch(/^looper +- +checkpointed/m);
    // The clone has images of its own.
    expect(reprise("rm", "looper").stdout).toBe("looper removed\n");
    expect(reprise("checkpoint", "other").status).toBe(0);
    expect(reprise("restore", "-c", "1", "other").status).toBe(0);
  });
});

describe("inspect", () => {
  it("shows checkpoints, tree, memory and files", async () => {
    await startLooper();
    reprise("checkpoint", "looper");
    const { stdout } = reprise("inspect", "looper");
    expect(stdout).toMatch(/^CHECKPOINT +MADE +SIZE +PID\n1 +\d+ s ago +\d+ KB +\d+\n/);
    expect(stdout).toMatch(/\nPID +PROCESS +THREADS +MAPPED +SAVED +FILES\n\d+ +sh +1 +[\d.]+ MB/);
    expect(stdout).toMatch(/\nFD +KIND +POSITION +NAME\n0 +file +0 +\/dev\/null\n1 +file +\d+ +/);
    const parsed = JSON.parse(reprise("inspect", "--json", "looper").stdout) as {
      tasks: { comm: string; savedBytes: number }[];
    };
    expect(parsed.tasks[0]).toMatchObject({ comm: "sh", threads: 1 });
    expect(parsed.tasks[0]?.savedBytes).toBeGreaterThan(4096);
  });
});

describe("check", () => {
  it("says line by line what this machine allows", () => {
    const { stdout, status } = reprise("check");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^ok +capabilities +/m);
    expect(stdout).toMatch(/^ok +clone3_set_tid +/m);
    expect(stdout).toMatch(/\nCheckpoints work here\.\n$/);
  });

  it("says what to do about what is missing, and ends with 1", () => {
    const args = ["--bounding-set=-all", "--", REPRISE, "check"];
    const options = { env: environment(), encoding: "utf8" } as const;
    const { stdout, status } = spawnSync("setpriv", args, options);
    expect(status).toBe(1);
    expect(stdout).toMatch(/^NO +capabilities +.* lacks .*SYS_ADMIN.*\. Run it as root/m);
    expect(stdout).toMatch(/\nCheckpoints do not work here: see what is marked NO\.\n$/);
  });
});

describe("check of a checkpoint", () => {
  it("says whether it fits, and restore warns when it does not", async () => {
    await startLooper();
    reprise("checkpoint", "looper");
    const images = join(home, "tasks", "looper", "checkpoints", "1", "images");
    for (const what of ["looper", images]) {
      const { stdout, status } = reprise("check", what);
      expect(status).toBe(0);
      expect(stdout).toMatch(new RegExp(`^ok +kernel +${release()}`, "m"));
      expect(stdout).toMatch(/^ok +processor +\S/m);
      expect(stdout).toMatch(/\nIt fits this machine\.\n$/);
    }
    changeMachine(images, () => ({ kernel: "99.1.0" }));

    const { stdout, status } = reprise("check", "looper");
    expect(status).toBe(1);
    expect(stdout).toMatch(/^NO +kernel +99\.1\.0 +this is Linux .* an older one/m);
    const restored = reprise("restore", "looper");
    expect(restored.stderr).toMatch(/^reprise: warning: kernel \(saved: 99\.1\.0\): this is Linux/);
    expect(restored.status).toBe(0);
    await counted("looper", 3);
  });
});

describe("output", () => {
  it("may be closed by who reads it", () => {
    const { status, stderr } = spawnSync("sh", ["-c", `${REPRISE} check | true`], {
      env: environment(),
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  });
});

describe("errors", () => {
  it.each([["checkpoint"], ["restore"], ["logs"], ["inspect"], ["rm"]])(
    "%s: a name that nobody has",
    (command) => {
      expect(reprise(command, "nobody")).toEqual({
        status: 3,
        stdout: "",
        stderr: expect.stringMatching(
          /^error: (there is no task nobody|nobody does not have a checkpoint)\n {2}\S/,
        ) as string,
      });
    },
  );

  it("clone: a name that nobody has, and one that is taken", () => {
    expect(reprise("clone", "nobody", "x")).toMatchObject({ status: 3, stdout: "" });
    reprise("run", "--name", "a", "--", "sleep", "60");
    expect(reprise("clone", "a", "a")).toMatchObject({
      status: 1,
      stderr: "error: the name a is taken\n  Choose another one, or remove it: reprise rm a\n",
    });
    expect(reprise("run", "--name", "a", "--", "true").stderr).toContain("the name a is taken");
  });

  it("checkpoint: a task that has ended; restore and rm: one that runs", async () => {
    reprise("run", "--name", "short", "--", "true");
    await until(() => reprise("ps").stdout.includes("ended"));
    expect(reprise("checkpoint", "short")).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/^error: short is not running\n/) as string,
    });
    reprise("run", "--name", "long", "--", "sleep", "60");
    reprise("checkpoint", "-r", "long");
    expect(reprise("restore", "long")).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/^error: long is running \(pid \d+\)\n/) as string,
    });
    expect(reprise("restore", "--explain", "long")).toMatchObject({ status: 2, stdout: "" });
    expect(reprise("rm", "long")).toMatchObject({ status: 2 });
    const pid = /^long +(\d+)/m.exec(reprise("ps").stdout)?.[1];
    expect(reprise("rm", "--force", "long")).toMatchObject({ status: 0 });
    const stat = existsSync(`/proc/${pid}`) ? readFileSync(`/proc/${pid}/stat`, "utf8") : ") Z";
    expect(stat).toMatch(/\) Z/);
    expect(reprise("ps").stdout).not.toContain("long");
  });

  it("checkpoint: what cannot be saved is named, and the task runs on", async () => {
    // A device whose state the kernel does not tell.
    const loop = "exec 3</dev/loop-control; while true; do echo x; sleep 0.1; done";
    reprise("run", "--name", "held", "--", "sh", "-c", loop);
    await until(() => log("held").includes("x\nx\n"));
    const refused = reprise("checkpoint", "held");
    expect(refused.status).toBe(4);
    expect(refused.stderr).toMatch(
      /^error: cannot dump fd 3 of pid \d+ \(\/dev\/loop-control\): .*\n {2}\S/,
    );
    const length = log("held").length;
    await until(() => log("held").length > length);
    expect(reprise("ps").stdout).toMatch(/^held +\d+ +running +\d+ s +0 /m);
  });

  it.each([
    [["frob"], "unknown command"],
    [["run", "--frob"], "unknown option"],
    [["checkpoint"], "missing required argument"],
    [["run", "--name", "a/b", "--", "true"], "is not a name"],
    [["run", "--name", "x", "--", "/nonexistent"], "cannot start /nonexistent: ENOENT"],
    [["check", "-c", "x", "a"], "is not the number of a checkpoint"],
    [["restore", "-c", "x", "a"], "is not the number of a checkpoint"],
  ])("wrong usage: %j", (args, text) => {
    const { status, stderr } = reprise(...args);
    expect({ status, told: stderr.includes(text) }).toEqual({ status: 2, told: true });
  });

  it("a home that cannot be made is no bug of ours, and nothing to wait for", () => {
    const env = { ...process.env, REPRISE_HOME: "/proc/nowhere" };
    const options = { env, encoding: "utf8", timeout: 10_000 } as const;
    const { status, stderr } = spawnSync(REPRISE, ["run", "--", "true"], options);
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(
        /^error: cannot carry out run: mkdir \/proc\/nowhere: ENOENT\n/,
      ) as string,
    });
  });

  it("a damaged image is named before anything is made", async () => {
    await startLooper();
    reprise("checkpoint", "looper");
    const images = join(home, "tasks", "looper", "checkpoints", "1", "images");
    writeFileSync(join(images, "files.img"), "rubbish");
    const { status, stderr } = reprise("restore", "looper");
    expect(status).toBe(1);
    expect(stderr).toMatch(/^error: cannot use image set: files\.img/);
    expect(reprise("ps").stdout).toMatch(/^looper +- +checkpointed/m);
  });
});

describe("two commands on one task", () => {
  it("work one after the other", async () => {
    await startLooper();
    const results = await Promise.all(
      [1, 2, 3].map(() => repriseLater("checkpoint", "-r", "looper")),
    );
    expect(results.map(({ stderr, status }) => ({ stderr, status }))).toEqual(
      results.map(() => ({ stderr: "", status: 0 })),
    );
    expect(reprise("ps").stdout).toMatch(/^looper +\d+ +running +\d+ s +3 /m);
  });

  it("tell who is in the way after a while", async () => {
    await startLooper();
    const lock = join(home, "tasks", "looper", "lock");
    const holder = spawn("flock", ["-o", lock, "sleep", "60"], { stdio: "ignore" });
    await until(() => spawnSync("flock", ["-n", lock, "true"]).status !== 0);
    writeFileSync(lock, `${holder.pid} (checkpoint looper)\n`);
    const { status, stderr } = reprise("checkpoint", "looper");
    holder.kill("SIGKILL");
    expect(status).toBe(1);
    expect(stderr).toContain("error: looper is busy: another command works on it\n");
    expect(stderr).toContain(`it is pid ${holder.pid} (checkpoint looper)`);
  }, 20_000);

  it("take over a name whose maker was killed", () => {
    mkdirSync(join(home, "tasks", "ghost", "checkpoints"), { recursive: true });
    expect(reprise("run", "--name", "ghost", "--", "sleep", "60").status).toBe(0);
    for (const name of ["lost", "left"])
      mkdirSync(join(home, "tasks", name, "checkpoints"), { recursive: true });
    expect(reprise("clone", "ghost", "lost")).toMatchObject({ status: 0, stderr: "" });
    expect(reprise("rm", "left")).toMatchObject({ status: 0, stdout: "left removed\n" });
    expect(existsSync(join(home, "tasks", "left"))).toBe(false);
  });
});

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, REPRISE_HOME: home };
}

function reprise(...args: readonly string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(REPRISE, args, {
    env: environment(),
    encoding: "utf8",
    timeout: 20_000,
  });
  return { status, stdout, stderr };
}

function repriseLater(...args: readonly string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(REPRISE, args, { env: environment() });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.once("close", (status) => resolve({ status, stdout, stderr }));
  });
}

async function startLooper(): Promise<void> {
  expect(reprise("run", "--name", "looper", "--", "sh", "-c", LOOP).status).toBe(0);
  await counted("looper", 3);
}

function log(name: string): string {
  return readFileSync(join(home, "tasks", name, "log"), "utf8");
}

function numbers(name: string): number[] {
  const text = log(name);
  return text
    .slice(0, text.lastIndexOf("\n") + 1)
    .split("\n")
    .slice(0, -1)
    .map(Number);
}

/** Waits until a task has written so many numbers. */
async function counted(name: string, count: number): Promise<void> {
  await until(() => numbers(name).length >= count);
}

/** No number is lost and none comes twice. */
function proveCounting(name: string, first: number): void {
  const found = numbers(name);
  expect(found).toEqual(found.map((_, index) => first + index));
}

function pidOf(name: string): number {
  const state = readFileSync(join(home, "tasks", name, "state.json"), "utf8");
  return (JSON.parse(state) as { pid: number }).pid;
}

function statusOf(name: string): string {
  return readFileSync(`/proc/${pidOf(name)}/status`, "utf8");
}

/** The pid of a task in its own pid namespace. */
function ownPidOf(name: string): number {
  return Number(/^NSpid:.*\t(\d+)$/m.exec(statusOf(name))?.[1]);
}

/** The pid namespace of a task. */
function namespaceOf(name: string): string {
  return readlinkSync(`/proc/${pidOf(name)}/ns/pid`);
}

/** Neither there nor a zombie that nobody has reaped yet. */
function isGone(pid: number): boolean {
  const path = `/proc/${pid}/stat`;
  return !existsSync(path) || / Z /.test(readFileSync(path, "utf8"));
}

async function until(condition: () => boolean, timeoutMs = 10_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not so after ${timeoutMs} ms: ${String(condition)}`);
    await setTimeout(20);
  }
}
