import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { RepriseError } from "../errors.ts";
import { unescapeOctal } from "./escapes.ts";
import {
  attempt,
  readProcBytes,
  readProcDir,
  readProcLink,
  readProcText,
  readProcTextIfAlive,
  readProcTextIfSupported,
} from "./procfs.ts";

function thrownBy(run: () => unknown): RepriseError {
  try {
    run();
  } catch (error) {
    if (error instanceof RepriseError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

function fails(errno: string): () => never {
  return () => {
    throw Object.assign(new Error(errno), { code: errno });
  };
}

/** A pid that was ours and is gone. */
function deadPid(): number {
  const { pid } = spawnSync("true");
  return pid;
}

describe("readProcText()", () => {
  it("reads a file of a living process", () => {
    expect(readProcText(process.pid, "comm")).toMatch(/.\n$/);
  });

  it("throws NO_SUCH_PROCESS for a dead one, naming the pid and the errno", () => {
    const pid = deadPid();
    const error = thrownBy(() => readProcText(pid, "stat"));
    expect(error).toMatchObject({ code: "NO_SUCH_PROCESS", pid, errno: "ENOENT" });
    expect(error.message).toBe(`cannot read /proc/${pid}/stat: read: ENOENT`);
  });

  it("throws NO_SUCH_PROCESS for a thread that is gone of a process that lives", () => {
    const error = thrownBy(() => readProcText(process.pid, "task/1/stat"));
    expect(error.code).toBe("NO_SUCH_PROCESS");
  });

  it("throws KERNEL_FEATURE for a file that this kernel does not have", () => {
    const error = thrownBy(() => readProcText(process.pid, "no_such_file"));
    expect(error).toMatchObject({ code: "KERNEL_FEATURE", errno: "ENOENT" });
  });

  it("has forms that answer undefined for exactly one of these", () => {
    const pid = deadPid();
    expect(readProcTextIfAlive(pid, "stat")).toBeUndefined();
    expect(readProcTextIfSupported(process.pid, "no_such_file")).toBeUndefined();
    expect(thrownBy(() => readProcTextIfAlive(process.pid, "no_such_file")).code).toBe(
      "KERNEL_FEATURE",
    );
    expect(thrownBy(() => readProcTextIfSupported(pid, "stat")).code).toBe("NO_SUCH_PROCESS");
  });
});

describe("attempt()", () => {
  it.each([
    ["ESRCH", "NO_SUCH_PROCESS"],
    ["EACCES", "NOT_PERMITTED"],
    ["EPERM", "NOT_PERMITTED"],
    ["EINVAL", "SYSCALL"],
  ])("turns %s into %s", (errno, code) => {
    const what = { pid: process.pid, name: "maps", verb: "read", call: "read" };
    expect(thrownBy(() => attempt(what, fails(errno)))).toMatchObject({ code, errno });
  });

  it("lets other errors through as they are", () => {
    const what = { pid: process.pid, name: "maps", verb: "read", call: "read" };
    const bug = new TypeError("a bug");
    expect(() =>
      attempt(what, () => {
        throw bug;
      }),
    ).toThrow(bug);
  });
});

describe("readProcDir(), readProcLink(), readProcBytes()", () => {
  it("read a directory, a link and bytes of a child", async () => {
    const child = spawn("sleep", ["60"], { cwd: "/" });
    await once(child, "spawn");
    const pid = child.pid ?? 0;
    try {
      expect(readProcDir(pid, "task")).toStrictEqual([String(pid)]);
      expect(readProcLink(pid, "cwd")).toBe("/");
      expect(readProcBytes(pid, "environ")).toBeInstanceOf(Uint8Array);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(thrownBy(() => readProcLink(pid, "cwd")).code).toBe("NO_SUCH_PROCESS");
  });
});

describe("unescapeOctal()", () => {
  it("undoes only the bytes that the file escapes", () => {
    expect(unescapeOctal(String.raw`a\012b\040c\134d\777`, "\n")).toBe("a\nb\\040c\\134d\\777");
    expect(unescapeOctal(String.raw`a\012b\040c\134040`, " \n\\")).toBe("a\nb c\\040");
  });
});
