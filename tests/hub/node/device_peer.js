// azure-iot-device as a peer: does what it is told on stdin, prints what happens, one JSON object a line.
//
// Usage: node device_peer.js mqtt|websockets string CONNECTION_STRING CA_FILE | node device_peer.js mqtt|websockets edge
// Words on stdin: twin, report JSON, output NAME JSON, plain JSON.
'use strict';

const fs = require('fs');
const readline = require('readline');
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

const [transport, way, connectionString, caFile] = process.argv.slice(2);
const Transport = { mqtt: Mqtt, websockets: MqttWs }[transport];
let twin;

function say(facts) {
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

async function makeClient() {
  if (way === 'edge') return ModuleClient.fromEnvironment(Transport);
  const Kind = connectionString.includes('ModuleId=') ? ModuleClient : Client;
  const client = Kind.fromConnectionString(connectionString, Transport);
  await client.setOptions({ ca: fs.readFileSync(caFile, 'ascii') });
  return client;
}

function makeMessage(text) {
  const message = new Message(text);
  message.messageId = 'mid-1';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('colour', 'a+b c/ä');
  return message;
}

async function follow(client) {
  client.on('disconnect', () => say({ disconnected: true }));
  client.on('error', (error) => say({ failed: error.name }));
  if (client instanceof ModuleClient) {
    client.on('inputMessage', async (input, message) => {
      const properties = Object.fromEntries(message.properties.propertyList.map((one) => [one.key, one.value]));
      await client.complete(message);
      say({ input, body: message.data.toString(), properties, message_id: message.messageId });
    });
  }
  client.onMethod('status', async (request, response) => {
    say({ method: request.methodName, payload: request.payload });
    await response.send(207, { echo: request.payload });
  });
  twin = await client.getTwin();
  twin.on('properties.desired', (patch) => say({ patch }));
}

const report = (patch) =>
  new Promise((resolve, reject) => {
    twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()));
  });

async function obey(client, line) {
  const [word, ...rest] = line.trim().split(' ');
  try {
    if (word === 'twin') {
      const { desired, reported } = (twin = await client.getTwin()).properties;
      say({ twin: { desired, reported } });
    } else if (word === 'report') {
      await report(JSON.parse(rest.join(' ')));
      say({ reported: true });
    } else if (word === 'output') {
      await client.sendOutputEvent(rest[0], makeMessage(rest.slice(1).join(' ')));
      say({ sent: rest[0] });
    } else if (word === 'plain') {
      await client.sendEvent(makeMessage(rest.join(' ')));
      say({ sent: 'plain' });
    }
  } catch (error) {
    say({ failed: error.name, why: error.message });
  }
}

async function main() {
  try {
    const client = await makeClient();
    await client.open();
    await follow(client);
    let turn = Promise.resolve();
    readline.createInterface({ input: process.stdin }).on('line', (line) => {
      turn = turn.then(() => obey(client, line));
    });
    say({ ready: true });
  } catch (error) {
    say({ failed: error.name, why: error.message });
    process.exit(0);
  }
}

main();
