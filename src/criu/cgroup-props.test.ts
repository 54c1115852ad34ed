import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { propertyNames } from "../objects/cgroups/properties.ts";
import { cgroupProperties } from "./cgroup-props.ts";
import { parseOptions } from "./options.ts";

const CRIU_FORM = `"pids":
 - "strategy": "replace"
 - "properties": ["pids.max", "pids.events"]
"memory":
 - "strategy": "merge"
 - "properties": [ "memory.high" ]
`;

let directory: string;
beforeEach(() => (directory = mkdtempSync(join(tmpdir(), "reprise-cgroup-props-"))));
afterEach(() => rmSync(directory, { recursive: true }));

describe("cgroupProperties()", () => {
  it("reads the form that criu(8) tells", async () => {
    const lists = await cgroupProperties(parseOptions([["--cgroup-props", CRIU_FORM]]));
    expect([...lists]).toEqual([
      ["pids", { strategy: "replace", properties: ["pids.max", "pids.events"] }],
      ["memory", { strategy: "merge", properties: ["memory.high"] }],
    ]);
  });

  it("changes the lists of the string by those of the file", async () => {
    const file = join(directory, "props.yaml");
    writeFileSync(
      file,
      `"pids": [{strategy: merge}, {properties: [pids.peak]}]\n"memory": {strategy: replace, properties: []}\n`,
    );
    const words = ["--cgroup-props", CRIU_FORM, "--cgroup-props-file", file];
    expect([...(await cgroupProperties(parseOptions([words])))]).toEqual([
      ["pids", { strategy: "replace", properties: ["pids.max", "pids.events", "pids.peak"] }],
      ["memory", { strategy: "replace", properties: [] }],
    ]);
  });

  it.each([
    ["[1, 2", "cannot read --cgroup-props"],
    ["[1, 2]", "not a list of controllers"],
    ["cpu: 3", "controller cpu: it has no strategy and properties"],
    ["cpu: {strategy: add, properties: []}", "must be merge or replace"],
    ["cpu: {strategy: merge, properties: [../tasks]}", "names of files"],
    ["cpu: {strategy: merge, properties: [a], more: 1}", '"more" is not known'],
  ])("refuses %s", async (text, message) => {
    const wanted = cgroupProperties(parseOptions([["--cgroup-props", text]]));
    await expect(wanted).rejects.toThrow(message);
  });

  it("tells which file cannot be read", async () => {
    const file = join(directory, "missing");
    const wanted = cgroupProperties(parseOptions([["--cgroup-props-file", file]]));
    await expect(wanted).rejects.toThrow(`${file}: ENOENT`);
  });
});

describe("propertyNames()", () => {
  const changes = new Map([
    ["pids", { strategy: "replace", properties: ["pids.events"] }],
    ["memory", { strategy: "merge", properties: ["memory.zswap.max"] }],
  ] as const);

  it("changes what is saved of a controller of v1", () => {
    expect(propertyNames("pids", { changes })).not.toContain("pids.max");
    expect(propertyNames("pids", { changes })).toContain("pids.events");
    expect(propertyNames("memory", { changes })).toEqual(
      expect.arrayContaining(["memory.limit_in_bytes", "memory.zswap.max"]),
    );
  });

  it("changes what is saved of a controller of v2, and what makes a cgroup stays", () => {
    const names = propertyNames("", { changes });
    expect(names).not.toContain("pids.max");
    expect(names).toEqual(
      expect.arrayContaining(["pids.events", "memory.max", "memory.zswap.max", "cgroup.type"]),
    );
  });

  it("saves of other controllers than those to be dumped what every cgroup has", () => {
    const options = { changes: new Map(), dumpedControllers: ["memory"] };
    expect(propertyNames("", options)).toContain("memory.max");
    expect(propertyNames("", options)).not.toContain("pids.max");
    expect(propertyNames("pids", options)).toEqual(propertyNames("name=x", options));
  });
});
