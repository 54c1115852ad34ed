// Mounts that few trees have: made by a shell in a mount namespace of its own, and looked at by tools before and after.

import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { release } from "node:os";
import { join } from "node:path";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { readMountinfo } from "../../src/proc/mountinfo.ts";
import { CLONE_FS, CLONE_NEWNS } from "../../src/sys/abi/sched.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { makeDir, removeDir } from "./programs.ts";

const MAPPER = `
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
source, target, map = sys.argv[1:]
there, told = os.pipe()
child = os.fork()
if child == 0:
    libc.unshare(0x10000000)
    os.write(told, b"x")
    time.sleep(100)
os.read(there, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as file: file.write(map)
user = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
tree = libc.syscall(428, -100, source.encode(), 1)
attr = struct.pack("QQQQ", 0x100000, 0, 0, user)
failed = libc.syscall(442, tree, b"", 0x1000, attr, 32) or libc.syscall(429, tree, b"", -100, target.encode(), 4)
error = ctypes.get_errno()
os.kill(child, 9)
os.waitpid(child, 0)
sys.exit(os.strerror(error) if failed else 0)
`;

interface Held {
  readonly pid: number;
  /** Output of a shell in the tree. */
  run(script: string): string;
}

// This process is the outside: it has a mount that covers another one.
beforeAll(() => {
  syscall("unshare", CLONE_FS | CLONE_NEWNS);
  execFileSync("mount", ["--make-rprivate", "/"]);
  for (const name of ["lower", "upper"]) {
    execFileSync("mount", ["-t", "tmpfs", name, "/mnt"]);
    writeFileSync("/mnt/file", `${name}\n`);
  }
});

/** Mounts as a process sees them, without their numbers and those of their peer groups. */
function mountsOf({ pid }: Pick<Held, "pid">): string[] {
  return readMountinfo(pid)
    .map(({ root, mountPoint, options, fsType, source, superOptions }) =>
      [root, mountPoint, options.join(), fsType, source, superOptions.join()].join(" "),
    )
    .toSorted();
}

function held(pid: number, dir: string): Held {
  const enter = ["-t", `${pid}`, "-m", "-r", "sh", "-c"];
  return {
    pid,
    run: (script) =>
      execFileSync("nsenter", [...enter, `cd ${dir}; ${script}`], { encoding: "utf8" }),
  };
}

/** The only child of a process. */
function childOf(pid: number): string | undefined {
  return (
    readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ")[0] || undefined
  );
}

/** Starts a shell that makes mounts in a directory and stays; saves it, and brings it back. */
async function again(
  script: string,
  {
    how = ["-m"],
    propagation = "private",
    external = [],
    back = external,
    look = (): void => undefined,
  }: {
    readonly how?: readonly string[];
    readonly propagation?: "private" | "unchanged";
    readonly external?: readonly string[];
    /** At the restore. @default external */
    readonly back?: readonly string[];
    readonly look?: (before: Held) => void;
  } = {},
): Promise<{ before: readonly string[]; after: readonly string[]; held: Held }> {
  const dir = makeDir("mounts");
  onTestFinished(() => removeDir(dir));
  const work = join(dir, "work");
  mkdirSync(work);
  const body = `set -e; cd ${work}; ${script}\ncd /; touch ${dir}/up; exec sleep 1000`;
  const first = spawn("unshare", [...how, `--propagation=${propagation}`, "sh", "-c", body], {
    stdio: "ignore",
    detached: true,
  });
  onTestFinished(() => void first.kill("SIGKILL"));
  const pid = first.pid as number;
  await expect
    .poll(() => execFileSync("ls", [dir], { encoding: "utf8" }), { timeout: 10_000 })
    .toContain("up");
  const seen = held(Number(how.includes("-p") ? childOf(pid) : pid), work);
  await expect
    .poll(() => readFileSync(`/proc/${seen.pid}/comm`, "utf8"), { timeout: 10_000 })
    .toBe("sleep\n");
  look(seen);
  const before = mountsOf(seen);
  const imagesDir = mkdtempSync(join(dir, "images-"));
  await checkpoint({ pid, imagesDir, external });
  const restored = await restore({ imagesDir, external: back });
  const child = Number(childOf(restored.pid) ?? restored.pid);
  onTestFinished(() => {
    for (const one of new Set([child, restored.pid])) process.kill(one, "SIGKILL");
  });
  const now = held(how.includes("-p") ? child : restored.pid, work);
  return { before, after: mountsOf(now), held: now };
}

test("roots that were deleted, with what is in them", async () => {
  const {
    before,
    after,
    held: now,
  } = await again(
    "mkdir memory; mount -t tmpfs memory memory; for at in memory .; do (cd $at; " +
      "echo content > file; chmod 640 file; chown 5:6 file; touch place; mount --bind file place; rm file; " +
      "mkdir dir on; chmod 751 dir; mount --bind dir on; rmdir dir); done",
  );
  expect(after).toEqual(before);
  const told = "cd $at; cat place; stat -c '%a %u %g' place on";
  expect(now.run(`for at in memory .; do (${told}); done`)).toBe(
    "content\n640 5 6\n751 0 0\n".repeat(2),
  );
});

// Kernels before 6.15 do not tell how.
const [major = 0, minor = 0] = release().split(".").map(Number);

test.skipIf(major * 100 + minor < 615)("mounts that show other owners", async () => {
  const dir = makeDir("mapper");
  onTestFinished(() => removeDir(dir));
  const map = (source: string, target: string, ids: string): string =>
    `python3 -c '${MAPPER}' ${source} ${target} "${ids}"`;
  const told = "stat -c '%u %g' outside/file memory/shown/file";
  let seen = "";
  const {
    before,
    after,
    held: now,
  } = await again(
    "mkdir from outside memory; touch from/file; mount -t tmpfs memory memory; " +
      "mkdir memory/from memory/shown; touch memory/from/file; " +
      `${map("from", "outside", "0 1000 10")}; ${map("memory/from", "memory/shown", "0 2000 10")}`,
    { external: ["mnt[]:ms"], look: (one) => (seen = one.run(told)) },
  );
  expect(seen).toBe("1000 1000\n2000 2000\n");
  expect(after).toEqual(before);
  expect(now.run(told)).toBe(seen);
});

test("what only the machine's root may mount, in a user namespace, and what is covered for good", async () => {
  const { before, after } = await again("mount -t tmpfs mine .; echo 1 > file", {
    how: ["-rUm"],
  });
  expect(after).toEqual(before);
});

test("two file systems of one place outside", async () => {
  const { before, after, held: now } = await again("true", { external: ["mnt[]:ms"] });
  expect(after).toEqual(before);
  expect(now.run("cat /mnt/file; umount /mnt; cat /mnt/file")).toBe("upper\nlower\n");
});

test("volumes that share their mounts with the host do so again", async () => {
  for (const way of ["shared", "slave"]) {
    mkdirSync(`/mnt/${way}`);
    execFileSync("mount", ["-t", "tmpfs", way, `/mnt/${way}`]);
    execFileSync("mount", ["--make-shared", `/mnt/${way}`]);
  }
  const names = ["shared", "slave"];
  const { held: now } = await again("mount --make-slave /mnt/slave", {
    propagation: "unchanged",
    external: ["mnt[]:ms", ...names.map((name) => `mnt[/mnt/${name}]:${name}`)],
    back: ["mnt[]", ...names.map((name) => `mnt[${name}]:/mnt/${name}`)],
  });
  for (const name of names) execFileSync("mount", ["-m", "-t", "tmpfs", "in", `/mnt/${name}/in`]);
  expect(now.run("grep -o '/mnt/.*/in' /proc/mounts | sort")).toBe(
    "/mnt/shared/in\n/mnt/slave/in\n",
  );
  now.run(
    "mkdir /mnt/shared/up /mnt/slave/up; mount -t tmpfs up /mnt/shared/up; mount -t tmpfs up /mnt/slave/up",
  );
  expect(readMountinfo(process.pid).filter(({ source }) => source === "up")).toHaveLength(1);
});

test("the /proc of a further pid namespace, in the root task's mount namespace", async () => {
  const {
    before,
    after,
    held: now,
  } = await again("mount -t proc mine /proc", {
    how: ["-r", "-U", "-m", "-f", "-p"],
  });
  expect(after).toEqual(before);
  expect(now.run("readlink /proc/1/exe")).toMatch(/sleep|coreutils/);
});

test("overlays of what is in the tree's own memory, in two mount namespaces", async () => {
  const over = (name: string, options: string): string =>
    `mkdir ${name}; mount -t overlay ${name} -o ${options} ${name}; `;
  const {
    before,
    after,
    held: now,
  } = await again(
    "D=$PWD; mkdir memory; mount -t tmpfs memory memory; cd memory; mkdir low up work up2 work2; echo low > low/file; cd ..; " +
      over("one", "lowerdir=$D/memory/low,upperdir=$D/memory/up,workdir=$D/memory/work") +
      "echo one > one/new; mkdir one/on; mount -t tmpfs on one/on; " +
      over("two", "lowerdir=$D/one,upperdir=$D/memory/up2,workdir=$D/memory/work2") +
      over("three", "lowerdir=$D/memory/up:$D/memory/low") +
      "mkdir there; unshare -m --propagation=private sh -c 'mount -t tmpfs inner there; touch there/up; exec sleep 1000' & " +
      "until nsenter -t $! -m test -e $D/there/up; do sleep 0.1; done",
  );
  expect(after).toEqual(before);
  const told = "echo 2 > two/more; cat one/file one/new two/new memory/up2/more; ls -m three there";
  expect(now.run(told)).toBe("low\none\none\n2\nthere:\n\nthree:\nfile, new, on\n");
  const child = Number(childOf(now.pid));
  expect(mountsOf({ pid: child }).filter((one) => one.includes(" overlay "))).toEqual(
    before.filter((one) => one.includes(" overlay ")),
  );
});
