import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { runHere } from "../../tracee/local.ts";
import { Program } from "../../tracee/program.ts";
import {
  hostLsm,
  LabelPlan,
  lsmCode,
  lsmOfCode,
  openLabels,
  parseProfile,
  readLabels,
  writeLabels,
} from "./lsm.ts";

const CONTEXT = "system_u:system_r:container_t:s0:c1,c2";
const THREAD = { pid: 7, tid: 8 };

let root: string;
beforeEach(() => (root = mkdtempSync(join(tmpdir(), "reprise-lsm-"))));
afterEach(() => rmSync(root, { recursive: true }));

/** Stands for the kernel's files. */
function put(name: string, text: string): void {
  const file = join(root, name);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
}

describe("hostLsm()", () => {
  it("tells the module by what the kernel shows", () => {
    expect(hostLsm(root)).toBe("none");
    put("proc/self/attr/current", "kernel\0");
    expect(hostLsm(root)).toBe("none");
    put("proc/self/attr/current", `${CONTEXT}\0`);
    expect(hostLsm(root)).toBe("selinux");
    put("proc/self/attr/apparmor/current", "unconfined\n");
    expect(hostLsm(root)).toBe("apparmor");
  });

  it("keeps modules apart by their numbers", () => {
    for (const lsm of ["none", "apparmor", "selinux"] as const)
      expect(lsmOfCode(lsmCode(lsm))).toBe(lsm);
  });
});

describe("readLabels()", () => {
  it("reads an AppArmor profile without its mode", () => {
    const attr = "proc/7/task/8/attr";
    put(`${attr}/current`, "docker-default (enforce)\n");
    expect(readLabels(THREAD, "apparmor", root)).toEqual({ lsm_profile: "docker-default" });
    put(`${attr}/apparmor/current`, "other profile (complain)\n");
    expect(readLabels(THREAD, "apparmor", root)).toEqual({ lsm_profile: "other profile" });
    put(`${attr}/apparmor/current`, "unconfined\n");
    expect(readLabels(THREAD, "apparmor", root)).toEqual({});
  });

  it("reads SELinux contexts", () => {
    put("proc/7/task/8/attr/current", `${CONTEXT}\0`);
    put("proc/7/task/8/attr/sockcreate", "");
    expect(readLabels(THREAD, "selinux", root)).toEqual({ lsm_profile: CONTEXT });
    put("proc/7/task/8/attr/sockcreate", `${CONTEXT}\0`);
    expect(readLabels(THREAD, "selinux", root)).toEqual({
      lsm_profile: CONTEXT,
      lsm_sockcreate: CONTEXT,
    });
  });

  it("refuses what is no context", () => {
    put("proc/7/task/8/attr/current", "kernel");
    expect(() => readLabels(THREAD, "selinux", root)).toThrow(
      'pid 7: "kernel" is no SELinux context',
    );
  });

  it("reads nothing where the kernel has no labels", () => {
    expect(readLabels(THREAD, "none", root)).toEqual({});
  });
});

describe("parseProfile()", () => {
  it("reads a module and its profile", () => {
    expect(parseProfile("apparmor:docker-default")).toEqual({
      lsm: "apparmor",
      name: "docker-default",
    });
    expect(parseProfile(`selinux:${CONTEXT}`)).toEqual({ lsm: "selinux", name: CONTEXT });
    expect(parseProfile("none:")).toEqual({ lsm: "none", name: undefined });
  });

  it.each(["apparmor", "apparmor:", "smack:x", ""])("refuses '%s'", (text) => {
    expect(() => parseProfile(text)).toThrow("invalid argument for --lsm-profile");
  });
});

describe("a plan of labels", () => {
  const creds = { lsm_profile: "docker-default" };

  it("gives back what was saved", () => {
    const apparmor = new LabelPlan({ host: "apparmor", image: "apparmor" });
    expect(apparmor.of(creds, 7)).toEqual({ lsm_profile: "changeprofile docker-default" });
    expect(apparmor.of({}, 7)).toEqual({});
    const selinux = new LabelPlan({ host: "selinux", image: "selinux" });
    const labels = { lsm_profile: CONTEXT, lsm_sockcreate: CONTEXT };
    expect(selinux.of(labels, 7)).toEqual(labels);
  });

  it("gives what the caller names, to all", () => {
    const wanted = parseProfile("apparmor:mine");
    const plan = new LabelPlan({ host: "apparmor", image: "none", wanted });
    expect(plan.of({}, 7)).toEqual({ lsm_profile: "changeprofile mine" });
    expect(plan.of(creds, 7)).toEqual({ lsm_profile: "changeprofile mine" });
  });

  it("refuses labels that the kernel cannot give, but not when the caller wants none", () => {
    const plan = new LabelPlan({ host: "none", image: "apparmor" });
    expect(plan.of({}, 7)).toEqual({});
    expect(() => plan.of(creds, 7)).toThrow(
      "cannot restore pid 7 with its apparmor label docker-default: this kernel has no security module",
    );
    const other = new LabelPlan({ host: "selinux", image: "apparmor" });
    expect(() => other.of(creds, 7)).toThrow("this kernel has selinux");
    const without = new LabelPlan({
      host: "none",
      image: "apparmor",
      wanted: parseProfile("none:"),
    });
    expect(without.of(creds, 7)).toEqual({});
  });

  it("refuses a profile of a module that the kernel lacks", () => {
    const wanted = parseProfile("selinux:a:b:c:d");
    expect(() => new LabelPlan({ host: "none", image: "none", wanted })).toThrow(
      "cannot give tasks the selinux profile a:b:c:d: this kernel has no such module in use",
    );
  });
});

it("labels are written by the thread itself, each in one piece", () => {
  put("thread-self/attr/current", "");
  put("thread-self/attr/sockcreate", "");
  const proc = openSync(root, "r");
  const program = new Program();
  const labels = { lsm_profile: "changeprofile mine", lsm_sockcreate: CONTEXT };
  writeLabels(program, openLabels(program, labels, { proc, places: [400, 401] }));
  writeLabels(program, openLabels(program, {}, { proc }));
  runHere(program);
  closeSync(proc);
  expect(readFileSync(join(root, "thread-self/attr/current"), "utf8")).toBe("changeprofile mine");
  expect(readFileSync(join(root, "thread-self/attr/sockcreate"), "utf8")).toBe(CONTEXT);
});
