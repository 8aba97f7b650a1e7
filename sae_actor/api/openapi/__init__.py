"""The description of the API (OpenAPI 3.1).

document           paths and operations, made from the table of operations
json_schema        JSON Schema of structs
"""
