// azure-iothub as a peer: one call for each line of stdin, its outcome as one JSON object a line.
//
// Usage: node service_peer.js CONNECTION_STRING; each line is a JSON list: name of a call below, then its arguments.
// A refused call prints {"refused": HTTP status, "code": the iothub-errorcode header}.
'use strict';

const readline = require('readline');
const { Client, Registry } = require('azure-iothub');

const registry = Registry.fromConnectionString(process.argv[2]);
const client = Client.fromConnectionString(process.argv[2]);
const PAGES_MAX = 20;

async function listPages(sql, pageSize) {
  const query = registry.createQuery(sql, pageSize);
  const pages = [];
  while (query.hasMoreResults) {
    if (pages.length === PAGES_MAX) return { refused: 'more pages than there can be', pages };
    pages.push((await query.next(query.continuationToken)).result);
  }
  return pages;
}

async function listTwins(sql, pageSize) {
  const { result } = await registry.createQuery(sql, pageSize).nextAsTwin();
  return result.map((twin) => twin.toJSON());
}

async function changeTwin(device, module, patch) {
  const { responseBody: twin } = await registry.getModuleTwin(device, module);
  await twin.update(patch);
  return twin.toJSON();
}

async function invoke(device, module, params) {
  const words = module === null ? [device, params] : [device, module, params];
  return (await client.invokeDeviceMethod(...words)).result;
}

const of = (name) => async (...words) => {
  const { responseBody } = await registry[name](...words);
  return responseBody && responseBody.toJSON ? responseBody.toJSON() : responseBody;
};

const CALLS = { listPages, listTwins, changeTwin, invoke };

function tell(facts) {
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

async function answer(line) {
  const [name, ...words] = JSON.parse(line);
  try {
    const result = await (CALLS[name] || of(name))(...words);
    tell({ result: result === undefined ? null : result });
  } catch (error) {
    const from = error.response;
    const facts = from ? { refused: from.statusCode, code: from.headers['iothub-errorcode'] } : { refused: `${error}` };
    tell({ result: facts });
  }
}

let turn = Promise.resolve();
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  turn = turn.then(() => answer(line));
});
tell({ ready: true });
