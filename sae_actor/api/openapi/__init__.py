"""The description of the API (OpenAPI 3.1).

document           paths and operations, made from the table of operations
json_schema        JSON Schema of structs and responses
responses          shapes of answers; `text_responses`: of `/v1`, `audit_responses`: of the log
"""
